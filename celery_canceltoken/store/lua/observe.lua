-- The body has seen its token tripped: the ladder's third time. Informational.
--
-- KEYS[1] record
-- ARGV[1] execution, ago (microseconds since then)
-- Answer  1 if it was written

local arg = cjson.decode(ARGV[1])
local record = read(KEYS[1])
if not record or record.execution ~= arg.execution or not record.request then return 0 end
return redis.call('HSETNX', KEYS[1], 'observed_at', earlier(now(), arg.ago))
