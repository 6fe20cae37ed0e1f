-- Take back what is asked of a task, as long as nobody has heeded it.
--
-- KEYS[1] record
-- ARGV[1] withdrawal (its id), request (take back this one only), states, task, prefix, ttl, waits
-- Answer  {'applied', '', state, kind of what was taken back} | {'refused', why, state, ''} | {'unreadable', why}
-- Idempotent: the same withdrawal gets the same answer again.

local arg = cjson.decode(ARGV[1])
local record, problem = read(KEYS[1])
if not record and problem ~= 'absent' then return {'unreadable', problem} end
record = record or {}
local state = record.state or ''

local function refused(why)
  return {'refused', why, state, ''}
end

local withdrawn_by = redis.call('HGET', KEYS[1], 'withdrawn_by')
if withdrawn_by == arg.withdrawal then return {'applied', '', state, record.kind or ''} end
if arg.states then
  local accepted = false
  for _, one in ipairs(arg.states) do accepted = accepted or one == state end
  if not accepted then return refused('state') end
end
if FINAL[state] then return refused('final') end
-- A requeue that came between an end and its settlement is as good as done.
if state == 'FINISHING' then return refused('finishing') end
if not pending(record) or (arg.request and record.request ~= arg.request) then return refused('nothing') end
if record.delivered_at then return refused('delivered') end
local at = now()
redis.call('HSET', KEYS[1], 'withdrawn_by', arg.withdrawal)
answer_request(KEYS[1], arg, record, 'withdrawn', at)
-- Whatever ends the task now, it was not this.
redis.call('HDEL', KEYS[1], 'cause', 'reason', 'actor', 'wanted_eta')
return {'applied', '', state, record.kind}
