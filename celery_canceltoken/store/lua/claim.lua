-- Before a body runs: take ownership of the id, or say why not.
--
-- KEYS[1] record   KEYS[2] index of what this agent owns   KEYS[3] mark of the workflow
-- KEYS[4] standing orders for tasks still to come
-- ARGV[1] execution, owner, worker, send, generation, redelivered, name, takes_token, late_ack, queue, root, broker,
--         stamps, unkept (why the message is not kept), dead_execution and dead_owner (to take over from),
--         running (the attempt that runs already: its record was lost, or could not be reached, and is
--         written now; or 0), task, prefix, ttl, waits
-- ARGV[2] the message as it came, in JSON; '' where it is not kept
-- Answer  {'run', attempt, generation, checkpoint or ''} | {'denied', cause, reason, actor} | {'skip', why}
--         | {'owned', execution, owner, same send} | {'untracked', why}
-- Idempotent: the same execution gets the same answer again.

local arg, message = cjson.decode(ARGV[1]), ARGV[2]
local execution, send, generation, running = arg.execution, arg.send, arg.generation, arg.running
local record, problem = read(KEYS[1])
if not record and problem ~= 'absent' then return {'untracked', problem} end
record = record or {}

local function own(fields, at)
  for _, name in ipairs({'execution', 'owner', 'worker', 'name', 'send', 'queue', 'root', 'broker'}) do
    fields[name] = arg[name] or ''
  end
  fields.takes_token, fields.late_ack = arg.takes_token and '1' or '0', arg.late_ack and '1' or '0'
  if running == 0 then
    fields.unkept = arg.unkept or ''
    fields.message = message
  end
  move(KEYS[1], arg, record, fields, at)
  redis.call('SADD', KEYS[2], arg.task)
  keep_for(KEYS[2], arg.ttl)
  if record.root and record.root ~= arg.task then
    local members = arg.prefix .. ':members:' .. record.root
    redis.call('ZADD', members, at, arg.task)
    redis.call('ZREMRANGEBYRANK', members, 0, -LIVE_LISTED - 1)
    keep_for(members, arg.waits)
  end
end

local function denied()
  return {'denied', record.cause, record.reason or '', record.actor or ''}
end

local function applies(order)
  if order.name and order.name ~= arg.name then return false end
  if order.queue and order.queue ~= arg.queue then return false end
  for header, wanted in pairs(order.stamps or {}) do
    local found = false
    for _, value in ipairs((arg.stamps or {})[header] or {}) do found = found or value == wanted end
    if not found then return false end
  end
  return true
end

-- What was asked of the whole workflow, or of all tasks of a kind, before this one came.
local function standing_order(at, new_life)
  if (record.pardoned and not new_life) or running > 0 then return nil end
  if redis.call('EXISTS', KEYS[3]) == 1 then
    return cjson.decode(redis.call('GET', KEYS[3]))
  end
  if redis.call('EXISTS', KEYS[4]) == 1 then
    local orders = redis.call('HGETALL', KEYS[4])
    for i = 1, #orders, 2 do
      local order = cjson.decode(orders[i + 1])
      if tonumber(order['until']) <= tonumber(at) then
        redis.call('HDEL', KEYS[4], orders[i])
      elseif applies(order) then
        return order
      end
    end
  end
end

local function start(new_generation, new_life)
  local at = now()
  if new_life and record.state and arg.root == arg.task then redis.call('DEL', KEYS[3]) end
  if running == 0 and not (pending(record) and record.kind ~= 'requeue') then
    local order = standing_order(at, new_life)
    if order then
      if pending(record) then answer_request(KEYS[1], arg, record, 'overruled', at) end
      local asked = {request=order.request, kind=order.kind, cause=order.cause, reason=order.reason or '',
                     actor=order.actor or '', answer='pending', previous=record.state or '',
                     requested_at=order.requested_at, delivered_at='', observed_at=''}
      for name, value in pairs(asked) do record[name] = value ~= '' and value or nil end
      write(KEYS[1], asked)
    end
  end
  if running == 0 and pending(record) and record.kind ~= 'requeue' then
    local fields = {state='FINISHING', outcome=record.kind == 'revoke' and 'REVOKED' or 'DELETED',
                    generation=new_generation, answer='effective', stopped_at=at, denied='1', row='', outbox='',
                    eta='', attempt=record.attempt or '0'}
    if new_life then
      for _, name in ipairs({'value', 'error', 'started_at', 'pardoned'}) do fields[name] = '' end
      fields.attempt = '0'
    end
    own(fields, at)
    return denied()
  end
  local attempt = math.max(running, new_life and 1 or (tonumber(record.attempt or '0') + 1))
  local fields = {state='PROCESSING', outcome='', generation=new_generation, attempt=attempt, started_at=at,
                  stopped_at='', denied='', row='', outbox='', eta='', value='', error='', pardoned=not new_life and record.pardoned or ''}
  if not (running > 0 and pending(record)) then
    -- The run that starts now is what was wanted of a requeue that nobody had heeded yet.
    if pending(record) then
      answer_request(KEYS[1], arg, record, record.wanted_eta and 'too-late' or 'effective', at)
    end
    for _, name in ipairs(REQUEST_FIELDS) do fields[name] = '' end
  end
  if new_life then fields.checkpoint, fields.shutdowns = '', '' end
  own(fields, at)
  return {'run', attempt, new_generation, redis.call('HGET', KEYS[1], 'checkpoint') or ''}
end

local state = record.state
if not state then return start(generation, true) end

local known = generation_of(record)
local same_send = (record.send or '') == send

if FINAL[state] then
  -- Without the header the broker's word is all there is to tell a stale copy from a new life.
  if (send == '' and (arg.redelivered or running > 0)) or (send ~= '' and same_send) then return {'skip', 'final'} end
  return start(generation, true)
end

if record.execution == execution and not WAITING[state] then
  if record.denied then return denied() end
  return {'run', tonumber(record.attempt), known, redis.call('HGET', KEYS[1], 'checkpoint') or ''}
end

if WAITING[state] then
  -- What waits in the outbox is carried out by any copy; but not before its time, where there is a message
  -- for the right time.
  -- Nor is what runs already such a copy: it is what the requeue has taken the id from.
  local any_copy = running == 0 and record.outbox and not (record.eta and redis.call('HEXISTS', KEYS[1], 'message') == 1)
  if same_send and generation < known and not any_copy then return {'skip', 'stale'} end
  return start(same_send and math.max(known, generation) or generation, not same_send)
end

if state == 'PROCESSING' then
  if same_send and generation > known then return start(generation, false) end
  if arg.dead_execution and arg.dead_execution == record.execution and arg.dead_owner == record.owner then
    return start(same_send and known + 1 or generation, not same_send)
  end
elseif same_send then
  return {'skip', 'finishing'}
end
return {'owned', record.execution or '', record.owner or '', same_send and '1' or '0'}
