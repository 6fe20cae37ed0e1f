-- The body has seen its token tripped: the ladder's third time. Informational.
--
-- KEYS[1] record
-- ARGV    1 execution  2 microseconds since then
-- Answer  1 if it was written

local record = read(KEYS[1])
if not record or record.execution ~= ARGV[1] or not record.request then return 0 end
return redis.call('HSETNX', KEYS[1], 'observed_at', earlier(now(), ARGV[2]))
