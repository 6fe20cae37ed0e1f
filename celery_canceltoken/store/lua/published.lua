-- The message that waited in the outbox is with the broker.
--
-- KEYS[1] record
-- ARGV[1] generation, task, prefix
-- Answer  1 if this was the one that waited

local arg = cjson.decode(ARGV[1])
local record = read(KEYS[1])
local waited = record and record.outbox == tostring(arg.generation)
if waited then redis.call('HDEL', KEYS[1], 'outbox') end
if waited or not (record and record.outbox) then redis.call('ZREM', arg.prefix .. ':outbox', arg.task) end
return waited and 1 or 0
