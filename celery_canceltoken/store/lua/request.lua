-- Somebody asks something of a task: store it, or refuse it and change nothing.
--
-- KEYS[1] record
-- ARGV[1] request (its id), kind, cause, reason, actor, states (those accepted; absent: any), must_exist,
--         wanted_eta (microseconds since the epoch, where it is to run at a time), inbox_length,
--         task, prefix, ttl, waits
-- Answer  {'applied', '', previous state, publish ('1': it waits in the outbox), generation, eta}
--         | {'refused', why, state, why the message was not kept} | {'unreadable', why}
-- Idempotent: the same request id gets the same answer again.
--
-- The wake-up of the owner is appended here as well, to a stream that has to exist: a client that did it
-- in a second step would cost every request a round trip, and might not live to do it.

local arg = cjson.decode(ARGV[1])
local kind = arg.kind
local record, problem = read(KEYS[1])
if not record and problem ~= 'absent' then return {'unreadable', problem} end
record = record or {}
local state = record.state or ''

local function applied(previous)
  local publish = record.kind == 'requeue' and record.outbox
  return {'applied', '', previous, publish and '1' or '', record.generation or '0', publish and record.eta or ''}
end

local function refused(why)
  return {'refused', why, state, record.unkept or ''}
end

if record.request == arg.request then return applied(record.previous or '') end
if arg.must_exist and state == '' then return refused('unknown') end
if arg.states then
  local accepted = false
  for _, one in ipairs(arg.states) do accepted = accepted or one == state end
  if not accepted then return refused('state') end
end
local again = kind == 'requeue'
if pending(record) and RANK[record.kind] >= RANK[kind] then return refused('already') end
if again then
  if state == '' then return refused('unknown') end
  if WAITING[state] and not arg.wanted_eta then return refused('queued') end
elseif FINAL[state] then
  return refused('final')
elseif state == 'FINISHING' then
  return refused('finishing')
end

-- The message of a deleted task goes with it, as soon as its end is written.
if again and record.outcome == 'DELETED' then return refused('no-message') end

local at = now()
local lost = state == 'PROCESSING' and redis.call('EXISTS', arg.prefix .. ':lease:' .. (record.owner or '')) == 0
local runs = RUNNING[state] and not lost
if again and (record.unkept == 'unreadable' or not (state == 'PROCESSING' and runs))
  and redis.call('HEXISTS', KEYS[1], 'message') == 0 then
  return refused('no-message')
end
-- A token trips once: a body that has been told of what this overrules will not be told of this.
local told = ''
if pending(record) then
  if record.delivered_at then told = at end
  answer_request(KEYS[1], arg, record, 'overruled', at)
elseif state == 'FINISHING' and record.request then
  -- Its answer is given, and would be remembered by `settle`, which will find this request in its place.
  record.state = record.outcome
  remember(KEYS[1], record, at)
  record.state = state
  tell_waiters(arg.prefix, arg.task, record)
end

local fields = {v=FORMAT, request=arg.request, kind=kind, cause=arg.cause, reason=arg.reason or '',
                actor=arg.actor or '', answer='pending', previous=state, requested_at=at, delivered_at=told,
                observed_at='', wanted_eta=arg.wanted_eta or '', completed=''}
if again and not runs then
  -- Whoever held it before, dead or to be heard of again, has nothing to say in it any more.
  for name, value in pairs({answer='effective', execution='', owner='', value='', error='', row='', pardoned='1', shutdowns=''}) do
    fields[name] = value
  end
  for name, value in pairs(fields) do record[name] = value ~= '' and value or nil end
  send_again(KEYS[1], arg, record, fields, at)
  return applied(state)
end
write(KEYS[1], fields)
for name, value in pairs(fields) do record[name] = value ~= '' and tostring(value) or nil end
remember(KEYS[1], record, at)
keep_for(KEYS[1], arg.waits)
if record.eta then keep_for(KEYS[1], math.max(0, math.floor((tonumber(record.eta) - tonumber(at)) / 1000)) + arg.waits) end
local agent = state == 'PROCESSING' and agent_of(record.owner)
if agent then
  redis.pcall('XADD', arg.prefix .. ':inbox:' .. agent, 'NOMKSTREAM', 'MAXLEN', '~', arg.inbox_length, '*',
              'task', arg.task, 'execution', record.execution)
end
return {'applied', '', state, '', record.generation or '0', ''}
