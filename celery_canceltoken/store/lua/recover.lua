-- The owner is dead: take over what it left, by comparing execution and owner.
--
-- KEYS[1] record   KEYS[2] index of what the recovering agent owns
-- ARGV[1] execution, dead_owner, owner, worker, recovery (its id), broker, task, prefix, ttl, waits
-- Answer  {'complete', outcome, value, cause, reason, actor}: write Celery's result, then settle
--         | {'sent-again'}: it waits in the outbox | {'left', why}: somebody else sees to it
-- Idempotent: the same recovery gets the same answer again.

local arg = cjson.decode(ARGV[1])
local record, problem = read(KEYS[1])
if not record then return {'left', problem} end
local function complete()
  return {'complete', record.outcome, record.value or '', record.cause or '', record.reason or '', record.actor or ''}
end

if record.execution == arg.recovery and record.state == 'FINISHING' then return complete() end
if record.execution ~= arg.execution or record.owner ~= arg.dead_owner then return {'left', 'changed'} end
-- Another app's that shares the store: its result, and its message, are for an agent of its own.
if record.broker and arg.broker and record.broker ~= arg.broker then return {'left', 'foreign'} end

local at = now()
local fields = {state='FINISHING', execution=arg.recovery, owner=arg.owner, worker=arg.worker}
if record.state == 'PROCESSING' then
  fields.stopped_at = at
  if pending(record) and record.kind ~= 'requeue' then
    fields.outcome, fields.answer = record.kind == 'revoke' and 'REVOKED' or 'DELETED', 'effective'
  elseif pending(record) and redis.call('HEXISTS', KEYS[1], 'message') == 1 then
    fields.answer, fields.execution, fields.owner, fields.worker = 'effective', '', '', nil
    fields.pardoned = '1'
    send_again(KEYS[1], arg, record, fields, at)
    tell_waiters(arg.prefix, arg.task, record)
    return {'sent-again'}
  elseif record.late_ack == '1' then
    return {'left', 'redelivery'}
  else
    fields.outcome = 'FAILED'
    if pending(record) then fields.answer = 'too-late' end
    fields.error = 'the worker was lost while it ran the task'
  end
elseif record.state ~= 'FINISHING' then
  return {'left', 'over'}
end
move(KEYS[1], arg, record, fields, at)
redis.call('SADD', KEYS[2], arg.task)
keep_for(KEYS[2], arg.ttl)
return complete()
