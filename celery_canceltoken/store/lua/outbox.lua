-- Which messages have waited to be published for so long that whoever was to do it has forgotten?
--
-- KEYS[1] outbox
-- ARGV[1] patience (microseconds), limit
-- Answer  task ids; whoever is told of one has it to itself for as long again

local arg = cjson.decode(ARGV[1])
local at = now()
local tasks = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', earlier(at, arg.patience), 'LIMIT', 0, arg.limit)
for _, task in ipairs(tasks) do redis.call('ZADD', KEYS[1], 'XX', at, task) end
return tasks
