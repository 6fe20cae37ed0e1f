-- After a lapsed lease: the worker is alive after all and goes on under a new incarnation.
--
-- KEYS[1] record
-- ARGV    1 execution  2 old owner  3 new owner
-- Answer  'adopted' | 'superseded' | 'gone' (no readable record: nothing to lose)

local record = read(KEYS[1])
if not record then return 'gone' end
if record.execution ~= ARGV[1] then return 'superseded' end
if record.owner == ARGV[3] or (record.state ~= 'PROCESSING' and record.state ~= 'FINISHING') then
  return 'adopted'
end
if record.owner ~= ARGV[2] then return 'superseded' end
redis.call('HSET', KEYS[1], 'owner', ARGV[3])
return 'adopted'
