-- What is asked of an execution? Only after this answer may its token trip.
--
-- KEYS[1] record
-- ARGV    1 execution
-- Answer  {'deliver', cause, reason, actor} | {'none'} | {'superseded'} | {'vanished'} | {'untracked', why}
-- Idempotent.

local record, problem = read(KEYS[1])
if problem == 'absent' then return {'vanished'} end
if not record then return {'untracked', problem} end
-- A request alone: the record was lost while the task ran, and somebody has asked since.
if not record.state then return {'vanished'} end
if record.execution ~= ARGV[1] then return {'superseded'} end
if record.state ~= 'PROCESSING' or not pending(record) then return {'none'} end
if not record.delivered_at then redis.call('HSET', KEYS[1], 'delivered_at', now()) end
return {'deliver', record.cause, record.reason or '', record.actor or ''}
