-- Which messages have waited to be published for so long that whoever was to do it has forgotten?
--
-- KEYS[1] outbox
-- ARGV[1] patience (microseconds), limit, broker (whose messages the asker can send), prefix
-- Answer  task ids; whoever is told of one has it to itself for as long again

local arg = cjson.decode(ARGV[1])
local at, tasks = now(), {}
-- Apps with brokers of their own may share a store: what is another's is left where it is.
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', earlier(at, arg.patience), 'LIMIT', 0, 1000)
for _, task in ipairs(due) do
  local key = arg.prefix .. ':task:' .. task
  local broker = redis.call('TYPE', key)['ok'] == 'hash' and redis.call('HGET', key, 'broker')
  if (not broker or broker == arg.broker) and #tasks < arg.limit then
    redis.call('ZADD', KEYS[1], 'XX', at, task)
    tasks[#tasks + 1] = task
  end
end
return tasks
