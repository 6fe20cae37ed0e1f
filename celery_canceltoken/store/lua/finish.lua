-- The body has ended: decide the outcome, or say that it is no longer this execution's to decide.
-- The rows of the outcome table are computed by the caller, one per kind of request that may be
-- pending by now; the script only picks the row, so that picking and writing are one step.
--
-- KEYS[1] record   KEYS[2] index of what this agent owns (absent on a cluster)
-- ARGV    1 execution  2 rows (JSON: kind or "none" -> {state, answer, next_generation})
--         3, 4, 5 cause, reason, actor of a cancellation that no request of the record explains
--         6 microseconds since the body observed ('' = it did not)  7 value  8 error
--         9 record ttl in ms  10 fields to start from where the record has vanished (JSON)
--         11 generation of the message  12 the execution could not claim, for the store was away
--         13 task id
-- Answer  {'recorded', row, state, answer, cause, reason, actor} | {'superseded'} | {'untracked', why}
-- Idempotent: the same execution gets the same answer again.

local record, problem = read(KEYS[1])
if not record and problem ~= 'absent' then return {'untracked', problem} end
record = record or {}
local afresh = cjson.decode(ARGV[10])
local known, same_send = tonumber(record.generation or '0'), (record.send or '') == afresh.send
local lost = not record.state
local unclaimed = ARGV[12] == '1' and record.execution ~= ARGV[1] and (
  (record.state == 'ENQUEUED' and not (same_send and tonumber(ARGV[11]) < known))
  or (FINAL[record.state] and not (same_send and afresh.send ~= '')))
local emptied = false
if lost or unclaimed then
  -- Data loss or eviction, not a cancellation; or nobody else's: what is known of the task is written again.
  emptied = FINAL[record.state]
  if emptied then record = {} end
  afresh.state, afresh.execution = 'PROCESSING', ARGV[1]
  for name, value in pairs(afresh) do record[name] = value end
end

local function recorded(state)
  return {'recorded', record.row or 'none', state, record.answer or '', record.cause or '', record.reason or '', record.actor or ''}
end

if record.execution ~= ARGV[1] then return {'superseded'} end
if record.state ~= 'PROCESSING' then return recorded(record.outcome or record.state) end

local asked = pending(record)
record.row = asked and record.kind or 'none'
local row = cjson.decode(ARGV[2])[record.row]
if row.state == '' then return {'superseded'} end

if lost or unclaimed then
  if emptied then redis.call('DEL', KEYS[1]) end
  write(KEYS[1], afresh)
  if KEYS[2] then
    redis.call('SADD', KEYS[2], ARGV[13])
    keep_for(KEYS[2], ARGV[9])
  end
end
local moment = now()
local fields = {stopped_at=moment, row=record.row, value=ARGV[7], error=ARGV[8]}
if ARGV[6] ~= '' and not record.observed_at then fields.observed_at = earlier(moment, ARGV[6]) end
if asked then
  if row.answer ~= 'carried' then fields.answer = row.answer end
elseif ARGV[3] ~= '' then
  fields.cause, fields.reason, fields.actor = ARGV[3], ARGV[4], ARGV[5]
end
if row.state == 'ENQUEUED' then
  fields.state = 'ENQUEUED'
  -- A message that goes back to the broker comes again with the generation it had.
  fields.generation = row.next_generation and tonumber(record.generation or '0') + 1 or ARGV[11]
else
  fields.state, fields.outcome = 'FINISHING', row.state
end
write(KEYS[1], fields)
keep_for(KEYS[1], ARGV[9])
for _, name in ipairs({'answer', 'cause', 'reason', 'actor'}) do record[name] = fields[name] or record[name] end
return recorded(row.state)
