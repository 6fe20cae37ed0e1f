-- Push the expiry of keys away again, and never nearer: a request may have to outlive its record's own time.
--
-- KEYS    any number
-- ARGV    1 ttl in ms
-- Answer  how many there were

for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then keep_for(key, ARGV[1]) end
end
return #KEYS
