-- After a lapsed lease: the worker is alive after all and goes on under a new incarnation.
--
-- KEYS[1] record
-- ARGV[1] execution, old_owner, new_owner
-- Answer  'adopted' | 'superseded' | 'gone' (no readable record: nothing to lose)

local arg = cjson.decode(ARGV[1])
local record = read(KEYS[1])
if not record then return 'gone' end
if record.execution ~= arg.execution then return 'superseded' end
if record.owner == arg.new_owner or not RUNNING[record.state or ''] then return 'adopted' end
if record.owner ~= arg.old_owner then return 'superseded' end
redis.call('HSET', KEYS[1], 'owner', arg.new_owner)
return 'adopted'
