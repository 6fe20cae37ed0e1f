-- Celery's result has been written: make the outcomes of one or more executions final.
--
-- KEYS    the records, then the index of what this agent owns
-- ARGV[1] owner, ended (per record: execution, task, instead: the state that Celery wrote instead of the
--         decided one, keep: what becomes of the message: 'always', 'until-success' or 'never'), prefix, ttl, waits
-- Answer  per record 1 if it was settled now, 2 if it goes to its queue again and waits in the outbox, else 0

local arg = cjson.decode(ARGV[1])
local agent = agent_of(arg.owner)
local answers = {}
for i, one in ipairs(arg.ended) do
  local key = KEYS[i]
  local record = read(key)
  local own = {task=one.task, prefix=arg.prefix, ttl=arg.ttl, waits=arg.waits}
  answers[i] = 0
  if record and record.execution == one.execution and record.state == 'FINISHING' then
    local at = now()
    if pending(record) and record.kind == 'requeue' then
      send_again(key, own, record, {answer='effective', completed=(one.instead or record.outcome) == 'SUCCEEDED' and '1' or '',
                                    row='', value='', error='', pardoned='1'}, at)
      answers[i] = 2
    else
      local final = one.instead or record.outcome
      local fields = {state=final, outcome='', denied='', row='',
                      value=final ~= 'SUCCEEDED' and final ~= 'DELETED' and record.value ~= 'null' and record.value or ''}
      if final == 'DELETED' then fields.error = '' end
      if final == 'DELETED' or final == 'SUCCEEDED' then fields.checkpoint, fields.shutdowns = '', '' end
      if final == 'DELETED' or (final == 'SUCCEEDED' and one.keep ~= 'always') then fields.message = '' end
      move(key, own, record, fields, at)
      answers[i] = 1
    end
    tell_waiters(arg.prefix, one.task, record)
  end
  local still_ours = record and answers[i] == 0 and agent_of(record.owner) == agent and RUNNING[record.state or '']
  if not still_ours then redis.call('SREM', KEYS[#KEYS], one.task) end
end
return answers
