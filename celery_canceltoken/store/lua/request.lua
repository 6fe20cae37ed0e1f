-- Somebody asks something of a task: store it, or refuse it and change nothing.
--
-- KEYS[1] record
-- ARGV    1 request id  2 kind  3 cause  4 reason  5 actor  6 accepted states, comma separated ('' = any)
--         7 must exist  8 request ttl in ms  9 task id  10 prefix of inbox keys  11 inbox length
-- Answer  {'applied', '', previous state, owner, execution} | {'refused', why, previous state, owner, execution}
--         | {'unreadable', why}
-- Idempotent: the same request id gets the same answer again.
--
-- The wake-up of the owner is appended here as well, to a stream that has to exist: a client that did it
-- in a second step would cost every revoke a round trip, and might not live to do it.

local kind = ARGV[2]
local record, problem = read(KEYS[1])
if not record and problem ~= 'absent' then return {'unreadable', problem} end
record = record or {}
local state = record.state or ''

local function answer(word, why, previous)
  return {word, why, previous or state, record.owner or '', record.execution or ''}
end

if record.request == ARGV[1] then return answer('applied', '', record.previous or '') end
if ARGV[7] == '1' and state == '' then return answer('refused', 'unknown') end
if ARGV[6] ~= '' and not (state ~= '' and string.find(',' .. ARGV[6] .. ',', ',' .. state .. ',', 1, true)) then
  return answer('refused', 'state')
end
if FINAL[state] then return answer('refused', 'final') end
if state == 'FINISHING' then return answer('refused', 'finishing') end
if pending(record) and RANK[record.kind] >= RANK[kind] then return answer('refused', 'already') end

write(KEYS[1], {v=FORMAT, request=ARGV[1], kind=kind, cause=ARGV[3], reason=ARGV[4], actor=ARGV[5],
                answer='pending', previous=state, requested_at=now(), delivered_at='', observed_at=''})
keep_for(KEYS[1], ARGV[8])
local agent = state == 'PROCESSING' and agent_of(record.owner)
if agent then
  redis.pcall('XADD', ARGV[10] .. agent, 'NOMKSTREAM', 'MAXLEN', '~', ARGV[11], '*',
              'task', ARGV[9], 'execution', record.execution)
end
return answer('applied', '')
