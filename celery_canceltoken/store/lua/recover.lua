-- The owner is dead: take over what it left, by comparing execution and owner.
--
-- KEYS[1] record   KEYS[2] index of what the recovering agent owns (absent on a cluster)
-- ARGV    1 execution  2 dead owner  3 new owner  4 new worker  5 id of the recovery  6 task id
--         7 record ttl in ms
-- Answer  {'complete', outcome, value, cause, reason, actor}: write Celery's result, then settle
--         | {'left', why}: somebody else sees to it
-- Idempotent: the same recovery gets the same answer again.

local record, problem = read(KEYS[1])
if not record then return {'left', problem} end
local function complete()
  return {'complete', record.outcome, record.value or '', record.cause or '', record.reason or '', record.actor or ''}
end

if record.execution == ARGV[5] and record.state == 'FINISHING' then return complete() end
if record.execution ~= ARGV[1] or record.owner ~= ARGV[2] then return {'left', 'changed'} end

local fields = {execution=ARGV[5], owner=ARGV[3], worker=ARGV[4]}
if record.state == 'PROCESSING' then
  if pending(record) and (record.kind == 'revoke' or record.kind == 'delete') then
    record.outcome = record.kind == 'revoke' and 'REVOKED' or 'DELETED'
    fields.answer = 'effective'
  elseif record.late_ack == '1' then
    return {'left', 'redelivery'}
  else
    record.outcome = 'FAILED'
    if pending(record) then fields.answer = 'too-late' end
    fields.error = 'the worker was lost while it ran the task'
  end
  fields.state, fields.outcome, fields.stopped_at = 'FINISHING', record.outcome, now()
elseif record.state ~= 'FINISHING' then
  return {'left', 'over'}
end
write(KEYS[1], fields)
if KEYS[2] then redis.call('SADD', KEYS[2], ARGV[6]); keep_for(KEYS[2], ARGV[7]) end
return complete()
