-- What is asked of an execution? Only after this answer may its token trip.
--
-- KEYS[1] record
-- ARGV[1] execution
-- Answer  {'deliver', cause, reason, actor} | {'none'} | {'superseded'} | {'vanished'} | {'untracked', why}
-- Idempotent.

local arg = cjson.decode(ARGV[1])
local record, problem = read(KEYS[1])
if problem == 'absent' then return {'vanished'} end
if not record then return {'untracked', problem} end
if record.execution ~= arg.execution then
  -- Nobody runs: a request alone, as the record was lost, or what was there before an execution that could
  -- not claim because the store was away. Whether it may have the record now is for `claim` to say.
  local nobody = not record.state or WAITING[record.state] or FINAL[record.state]
  return {nobody and 'vanished' or 'superseded'}
end
if record.state ~= 'PROCESSING' or not pending(record) then return {'none'} end
if not record.delivered_at then redis.call('HSET', KEYS[1], 'delivered_at', now()) end
return {'deliver', record.cause, record.reason or '', record.actor or ''}
