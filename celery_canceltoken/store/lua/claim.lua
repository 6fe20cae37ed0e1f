-- Before a body runs: take ownership of the id, or say why not.
--
-- KEYS[1] record   KEYS[2] index of what this agent owns (absent on a cluster: another slot)
-- ARGV    1 execution  2 owner  3 worker  4 send  5 generation  6 redelivered  7 task id  8 task name
--         9 takes token  10 late ack  11 record ttl in ms  12, 13 execution and owner to take over from
--         14 the attempt that runs already (its record was lost, or could not be reached, and is written
--         now), or 0
-- Answer  {'run', attempt, generation} | {'denied', cause, reason, actor} | {'skip', why}
--         | {'owned', execution, owner, same send} | {'untracked', why}
-- Idempotent: the same execution gets the same answer again.

local execution, owner, worker, send, generation = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local redelivered, task_id, running = ARGV[6] == '1', ARGV[7], tonumber(ARGV[14])
local record, problem = read(KEYS[1])
if not record and problem ~= 'absent' then return {'untracked', problem} end
record = record or {}

local function own(fields)
  fields.v, fields.execution, fields.owner, fields.worker = FORMAT, execution, owner, worker
  fields.name, fields.takes_token, fields.late_ack, fields.send = ARGV[8], ARGV[9], ARGV[10], send
  write(KEYS[1], fields)
  keep_for(KEYS[1], ARGV[11])
  if KEYS[2] then
    redis.call('SADD', KEYS[2], task_id)
    keep_for(KEYS[2], ARGV[11])
  end
end

local function denied()
  return {'denied', record.cause, record.reason or '', record.actor or ''}
end

local function start(new_generation, new_life)
  if running == 0 and pending(record) and (record.kind == 'revoke' or record.kind == 'delete') then
    own({state='FINISHING', outcome=record.kind == 'revoke' and 'REVOKED' or 'DELETED', generation=new_generation,
         answer='effective', stopped_at=now(), denied='1', row='', attempt=record.attempt or '0'})
    return denied()
  end
  local attempt = math.max(running, new_life and 1 or (tonumber(record.attempt or '0') + 1))
  local fields = {state='PROCESSING', outcome='', generation=new_generation, attempt=attempt, started_at=now(),
                  stopped_at='', denied='', row='', outbox='', value='', error=''}
  if not (running > 0 and pending(record)) then
    for _, name in ipairs({'request', 'kind', 'cause', 'reason', 'actor', 'answer', 'previous',
                           'requested_at', 'delivered_at', 'observed_at'}) do fields[name] = '' end
  end
  own(fields)
  return {'run', attempt, new_generation}
end

local state = record.state
if not state then return start(generation, true) end

local known = tonumber(record.generation or '0')
local same_send = (record.send or '') == send

if FINAL[state] then
  -- Without the header the broker's word is all there is to tell a stale copy from a new life.
  if (send == '' and (redelivered or running > 0)) or (send ~= '' and same_send) then return {'skip', 'final'} end
  return start(generation, true)
end

if record.execution == execution and state ~= 'ENQUEUED' then
  if record.denied then return denied() end
  return {'run', tonumber(record.attempt), known}
end

if state == 'ENQUEUED' then
  if same_send and generation < known and not record.outbox then return {'skip', 'stale'} end
  return start(math.max(known, generation), not same_send)
end

if state == 'PROCESSING' then
  if same_send and generation > known then return start(generation, false) end
  if ARGV[12] ~= '' and ARGV[12] == record.execution and ARGV[13] == record.owner then
    return start(same_send and known + 1 or generation, not same_send)
  end
elseif same_send then
  return {'skip', 'finishing'}
end
return {'owned', record.execution or '', record.owner or '', same_send and '1' or '0'}
