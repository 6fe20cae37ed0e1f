-- The body has ended: decide the outcome, or say that it is no longer this execution's to decide.
-- The rows of the outcome table are computed by the caller, one per kind of request that may be
-- pending by now; the script only picks the row, so that picking and writing are one step.
--
-- KEYS[1] record
-- ARGV    1 execution  2 rows (JSON: kind or "none" -> {state, answer, next_generation})
--         3, 4, 5 cause, reason, actor of a cancellation that no request of the record explains
--         6 microseconds since the body observed ('' = it did not)  7 value  8 error
--         9 record ttl in ms  10 fields to start from where the record has vanished (JSON)
-- Answer  {'recorded', row, state, answer, cause, reason, actor} | {'superseded'} | {'untracked', why}
-- Idempotent: the same execution gets the same answer again.

local record, problem = read(KEYS[1])
if not record and problem ~= 'absent' then return {'untracked', problem} end
record = record or {}
if not record.state then
  -- Data loss or eviction, not a cancellation: what is known of the task is written again.
  local afresh = cjson.decode(ARGV[10])
  afresh.state, afresh.execution = 'PROCESSING', ARGV[1]
  write(KEYS[1], afresh)
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
  if row.next_generation then fields.generation = tonumber(record.generation or '0') + 1 end
else
  fields.state, fields.outcome = 'FINISHING', row.state
end
write(KEYS[1], fields)
keep_for(KEYS[1], ARGV[9])
for _, name in ipairs({'answer', 'cause', 'reason', 'actor'}) do record[name] = fields[name] or record[name] end
return recorded(row.state)
