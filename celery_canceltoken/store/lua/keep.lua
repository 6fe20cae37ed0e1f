-- Push the expiry of keys away again, and never nearer: a request may have to outlive its record's own time.
--
-- KEYS    any number
-- ARGV[1] ttl
-- Answer  how many there were

local arg = cjson.decode(ARGV[1])
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then keep_for(key, arg.ttl) end
end
return #KEYS
