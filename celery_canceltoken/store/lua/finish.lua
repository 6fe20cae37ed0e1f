-- The body has ended: decide the outcome, or say that it is no longer this execution's to decide.
-- The rows of the outcome table are computed by the caller, one per kind of request that may be
-- pending by now; the script only picks the row, so that picking and writing are one step.
--
-- KEYS[1] record   KEYS[2] index of what this agent owns
-- ARGV[1] execution, rows (kind, "none" or "capped" -> {state, answer, next_generation, republish, completed}),
--         cause, reason, actor (of a cancellation that no request of the record explains),
--         observed_ago (microseconds since the body observed), value, error, generation (of the message),
--         afresh (fields to start from where the record has vanished), unclaimed (the execution could not
--         claim, for the store was away), max_shutdowns (how often in a row a shutdown may send it back
--         without a checkpoint in between), task, prefix, ttl, waits
-- Answer  {'recorded', row, state, cause, reason, actor, generation, eta} | {'superseded'} | {'untracked', why}
-- Idempotent: the same execution gets the same answer again.

local arg = cjson.decode(ARGV[1])
local record, problem = read(KEYS[1])
if not record and problem ~= 'absent' then return {'untracked', problem} end
record = record or {}
local afresh = arg.afresh
local known, same_send = generation_of(record), (record.send or '') == afresh.send
local lost = not record.state
local unclaimed = arg.unclaimed and record.execution ~= arg.execution and (
  (WAITING[record.state] and not (same_send and arg.generation < known))
  or (FINAL[record.state] and not (same_send and afresh.send ~= '')))
local emptied, former = false, record.state
if lost or unclaimed then
  -- Data loss or eviction, not a cancellation; or nobody else's: what is known of the task is written again.
  emptied = FINAL[record.state]
  if emptied then record = {} end
  afresh.v, afresh.state, afresh.execution = FORMAT, 'PROCESSING', arg.execution
  for name, value in pairs(afresh) do record[name] = tostring(value) end
end

local function recorded(state)
  return {'recorded', record.row or 'none', state, record.cause or '', record.reason or '', record.actor or '',
          record.generation or '0', record.eta or ''}
end

if record.execution ~= arg.execution then return {'superseded'} end
if record.state ~= 'PROCESSING' then return recorded(record.outcome or record.state) end

local asked = pending(record)
record.row = asked and record.kind or 'none'
local row = arg.rows[record.row]
if row.state == '' then return {'superseded'} end
local shutdowns
if arg.cause == 'SHUTDOWN' and not asked and row.republish then
  shutdowns = tonumber(record.shutdowns or '0') + 1
  if shutdowns > arg.max_shutdowns then
    record.row = 'capped'
    row = arg.rows.capped
  end
end

if lost or unclaimed then
  if emptied then redis.call('DEL', KEYS[1]) end
  write(KEYS[1], afresh)
  if former then redis.call('ZREM', list_key(arg.prefix, 'state', former), arg.task) end
  redis.call('SADD', KEYS[2], arg.task)
  keep_for(KEYS[2], arg.ttl)
end
local at = now()
local fields = {stopped_at=at, row=record.row, value=arg.value or '', error=arg.error or '', outbox='', eta=''}
if arg.observed_ago and not record.observed_at then fields.observed_at = earlier(at, arg.observed_ago) end
if asked then
  if row.answer ~= 'carried' then fields.answer = row.answer end
  if record.row == 'requeue' and row.republish then fields.pardoned = '1' end
  -- A retry is on its way at its own time.
  if record.wanted_eta and row.answer == 'effective' and not row.republish then fields.answer = 'too-late' end
elseif arg.cause then
  fields.cause, fields.reason, fields.actor = arg.cause, arg.reason or '', arg.actor or ''
end
if row.completed then fields.completed = '1' end
if shutdowns and row.republish then fields.shutdowns = shutdowns end
if row.republish then
  send_again(KEYS[1], arg, record, fields, at)
  tell_waiters(arg.prefix, arg.task, record)
elseif row.state == 'ENQUEUED' then
  fields.state = 'ENQUEUED'
  -- A message that goes back to the broker comes again with the generation it had.
  fields.generation = row.next_generation and generation_of(record) + 1 or arg.generation
  -- Nor is the message of the run that ends the one that a retry, or what replaces the task, comes with.
  if row.next_generation then fields.message = '' end
  move(KEYS[1], arg, record, fields, at)
  if row.answer ~= 'carried' then tell_waiters(arg.prefix, arg.task, record) end
else
  fields.state, fields.outcome = 'FINISHING', row.state
  move(KEYS[1], arg, record, fields, at)
end
return recorded(row.state)
