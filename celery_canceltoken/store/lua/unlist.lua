-- Take entries off a list that were found wrong, unless they have been listed anew since.
--
-- KEYS[1] list
-- ARGV[1] entries (each {task, score as text})
-- Answer  how many were taken off

local arg, removed = cjson.decode(ARGV[1]), 0
for _, entry in ipairs(arg.entries) do
  if redis.call('ZSCORE', KEYS[1], entry[1]) == entry[2] then
    removed = removed + redis.call('ZREM', KEYS[1], entry[1])
  end
end
return removed
