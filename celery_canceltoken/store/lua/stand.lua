-- A standing order for tasks still to come, until a time.
--
-- KEYS[1] standing orders
-- ARGV[1] order (request, kind, cause, reason, actor, name, queue, stamps), seconds, limit
-- Answer  1 if it stands, 0 if there are too many

local arg = cjson.decode(ARGV[1])
local at = now()
local orders = redis.call('HGETALL', KEYS[1])
for i = 1, #orders, 2 do
  if tonumber(cjson.decode(orders[i + 1])['until']) <= tonumber(at) then redis.call('HDEL', KEYS[1], orders[i]) end
end
if redis.call('HEXISTS', KEYS[1], arg.order.request) == 1 then return 1 end
if redis.call('HLEN', KEYS[1]) >= arg.limit then return 0 end
arg.order.requested_at = at
arg.order['until'] = string.format('%.0f', tonumber(at) + arg.seconds * 1000000)
redis.call('HSET', KEYS[1], arg.order.request, cjson.encode(arg.order))
keep_for(KEYS[1], math.ceil(arg.seconds * 1000))
return 1
