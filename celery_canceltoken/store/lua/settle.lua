-- Celery's result has been written: make the outcomes of one or more executions final.
--
-- KEYS    n records, then the index of what this agent owns (absent on a cluster)
-- ARGV    1 n  2 owner  3 record ttl in ms, then for each record: execution, task id, state that Celery
--         wrote instead of the decided one ('' = none), channel of those who wait for the end
-- Answer  per record 1 if it was settled now

local count, agent = tonumber(ARGV[1]), agent_of(ARGV[2])
local answers = {}
for i = 1, count do
  local key, at = KEYS[i], 3 + (i - 1) * 4
  local execution, task_id, instead, channel = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local record = read(key)
  answers[i] = 0
  if record and record.execution == execution and record.state == 'FINISHING' then
    local final = instead ~= '' and instead or record.outcome
    write(key, {state=final, outcome='', denied='', row='', value=final ~= 'SUCCEEDED' and record.value ~= 'null' and record.value or ''})
    redis.call('PEXPIRE', key, ARGV[3])
    if record.request then redis.call('PUBLISH', channel, final) end
    answers[i] = 1
  end
  local still_ours = record and answers[i] == 0 and agent_of(record.owner) == agent
    and (record.state == 'PROCESSING' or record.state == 'FINISHING')
  if KEYS[count + 1] and not still_ours then
    redis.call('SREM', KEYS[count + 1], task_id)
  end
end
return answers
