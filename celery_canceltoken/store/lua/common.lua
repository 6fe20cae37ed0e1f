-- Put before every script. A record is one hash; `v` is its format version. What a script is told comes as
-- one JSON object of named arguments; what is absent there is nil here.
--
-- Some keys are made here from the prefix: the lists, the outbox, leases, inboxes. A list is a convenience,
-- repaired by whoever finds it wrong; what is true is in the record.

local FORMAT = 1
local CAUSES = {REVOKED=true, DELETED=true, REQUEUED=true, SHUTDOWN=true, SUPERSEDED=true, LEASE_LOST=true, TIMEOUT=true}
local RANK = {requeue=0, revoke=1, delete=2}
local FINAL = {SUCCEEDED=true, FAILED=true, REVOKED=true, DELETED=true, IGNORED=true, REJECTED=true}
local WAITING = {ENQUEUED=true, SCHEDULED=true}
local RUNNING = {PROCESSING=true, FINISHING=true}
local HISTORY = 20
local LISTED, LIVE_LISTED = 10000, 1000000
-- What scripts go by and change. The message, which may be large, and the history are not among it.
local FIELDS = {'v', 'state', 'outcome', 'execution', 'owner', 'worker', 'name', 'takes_token', 'late_ack', 'send',
                'generation', 'attempt', 'started_at', 'stopped_at', 'request', 'kind', 'cause', 'reason', 'actor',
                'answer', 'previous', 'requested_at', 'delivered_at', 'observed_at', 'denied', 'row', 'value', 'error',
                'outbox', 'eta', 'wanted_eta', 'root', 'queue', 'unkept', 'completed', 'pardoned', 'changes', 'shutdowns',
                'broker'}

-- Microseconds since the epoch, as text: a Lua number of this size would lose digits when printed.
local function now()
  local time = redis.call('TIME')
  return time[1] .. string.format('%06d', tonumber(time[2]))
end

local function earlier(moment, microseconds)
  return string.format('%.0f', tonumber(moment) - tonumber(microseconds))
end

local function is_count(text)
  return text == nil or string.match(text, '^%d+$') ~= nil
end

-- Whether all that the scripts go by can be understood.
local function makes_sense(record)
  local state = record.state
  return (state == nil or FINAL[state] or WAITING[state] or RUNNING[state])
    and (state ~= 'FINISHING' or FINAL[record.outcome])
    and is_count(record.generation) and is_count(record.attempt) and is_count(record.changes)
    and is_count(record.eta) and is_count(record.wanted_eta) and is_count(record.outbox) and is_count(record.shutdowns)
    and (record.cause == nil or CAUSES[record.cause])
    and (record.request == nil or (RANK[record.kind] and (record.cause or record.answer ~= 'pending')))
end

-- The agent of an owner, whatever its incarnation.
local function agent_of(owner)
  return string.match(owner or '', '^(.*)%.%d+$')
end

-- The record as a table, or nil and why it cannot be used ('absent', 'damaged', 'newer').
local function read(key)
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'none' then return nil, 'absent' end
  if kind ~= 'hash' then return nil, 'damaged' end
  local values = redis.call('HMGET', key, unpack(FIELDS))
  local record = {}
  for i, name in ipairs(FIELDS) do record[name] = values[i] or nil end
  if not record.v or not is_count(record.v) then return nil, 'damaged' end
  if tonumber(record.v) > FORMAT then return nil, 'newer' end
  if not makes_sense(record) then return nil, 'damaged' end
  return record
end

-- Sets the fields that have a value and removes those that have none.
local function write(key, fields)
  local set, removed = {}, {}
  for name, value in pairs(fields) do
    if value == '' or value == false then
      removed[#removed + 1] = name
    else
      set[#set + 1] = name
      set[#set + 1] = value
    end
  end
  if #removed > 0 then redis.call('HDEL', key, unpack(removed)) end
  if #set > 0 then redis.call('HSET', key, unpack(set)) end
end

local function pending(record)
  return record.request and record.answer == 'pending'
end

local function generation_of(record)
  return tonumber(record.generation or '0')
end

-- Never shortens: a stored request may have to outlive the record's own time.
local function keep_for(key, milliseconds)
  if redis.call('PTTL', key) < tonumber(milliseconds) then redis.call('PEXPIRE', key, milliseconds) end
end

local function tell_waiters(prefix, task, record)
  if record.request then redis.call('PUBLISH', prefix .. ':stopped:' .. task, record.answer or '') end
end

-- One more line of the record's history; the oldest of them makes room.
local function remember(key, record, at)
  local line = {state=record.state, at=at, worker=record.worker, attempt=tonumber(record.attempt or '0'),
                cause=record.cause, reason=record.reason, actor=record.actor,
                request=record.request, kind=record.kind, answer=record.answer, completed=record.completed}
  local changes = tonumber(record.changes or '0')
  line.n = changes
  record.changes = tostring(changes + 1)
  redis.call('HSET', key, 'h' .. changes % HISTORY, cjson.encode(line), 'changes', record.changes)
end

local function list_key(prefix, field, value)
  return prefix .. ':list:' .. field .. ':' .. value
end

local function enlist(list, task, at, limit, lifetime)
  redis.call('ZADD', list, at, task)
  redis.call('ZREMRANGEBYRANK', list, 0, -limit - 1)
  keep_for(list, lifetime)
end

-- Gives the record a state: the one place where that is written, dated, remembered and listed.
-- `arg` has task, prefix, ttl (of what has ended or runs) and waits (how long what waits is kept), in ms.
local function move(key, arg, record, fields, at)
  local before = record.state
  fields.v = FORMAT
  fields.completed = fields.completed or ''
  for name, value in pairs(fields) do record[name] = value ~= '' and tostring(value) or nil end
  write(key, fields)
  local state = record.state
  if state ~= 'FINISHING' then remember(key, record, at) end
  if FINAL[state] then
    redis.call('PEXPIRE', key, arg.ttl)
  else
    keep_for(key, WAITING[state] and arg.waits or arg.ttl)
    if record.eta then keep_for(key, math.max(0, math.floor((tonumber(record.eta) - tonumber(at)) / 1000)) + arg.ttl) end
  end

  local lifetime = redis.call('PTTL', key)
  if before and before ~= state then redis.call('ZREM', list_key(arg.prefix, 'state', before), arg.task) end
  local list = list_key(arg.prefix, 'state', state)
  enlist(list, arg.task, at, FINAL[state] and LISTED or LIVE_LISTED, lifetime)
  if FINAL[state] then
    redis.call('ZREMRANGEBYSCORE', list, '-inf', '(' .. earlier(at, arg.ttl * 1000))
  end
  for _, field in ipairs({'name', 'worker'}) do
    local value = record[field]
    if value then enlist(list_key(arg.prefix, field, value), arg.task, at, LISTED, lifetime) end
  end
end

-- A request gets its answer without a change of state.
local function answer_request(key, arg, record, answer, at)
  record.answer = answer
  redis.call('HSET', key, 'answer', answer)
  remember(key, record, at)
  tell_waiters(arg.prefix, arg.task, record)
end

local REQUEST_FIELDS = {'request', 'kind', 'cause', 'reason', 'actor', 'answer', 'previous',
                        'requested_at', 'delivered_at', 'observed_at', 'wanted_eta'}

-- The id goes to its queue again as the next generation: whoever publishes it says so with `published`.
local function send_again(key, arg, record, fields, at)
  fields.generation = generation_of(record) + 1
  fields.outbox = fields.generation
  fields.eta = record.wanted_eta or ''
  fields.wanted_eta = ''
  fields.state = fields.eta ~= '' and 'SCHEDULED' or 'ENQUEUED'
  fields.outcome, fields.denied = '', ''
  move(key, arg, record, fields, at)
  redis.call('ZADD', arg.prefix .. ':outbox', at, arg.task)
  keep_for(arg.prefix .. ':outbox', redis.call('PTTL', key))
end
