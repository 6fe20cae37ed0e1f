-- Something is asked of a whole workflow: whatever of it is claimed from now on is told.
--
-- KEYS[1] mark of the workflow
-- ARGV[1] order (JSON text: request, kind, cause, reason, actor), waits
-- Answer  the id of the request that the mark holds: the first one stays

local arg = cjson.decode(ARGV[1])
local marked = redis.call('GET', KEYS[1])
local held = marked and cjson.decode(marked)
if held and RANK[held.kind] >= RANK[arg.order.kind] then return held.request end
arg.order.requested_at = now()
redis.call('SET', KEYS[1], cjson.encode(arg.order), 'PX', arg.waits)
return arg.order.request
