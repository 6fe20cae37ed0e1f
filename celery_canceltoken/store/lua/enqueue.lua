-- A message was published: write down that its task waits, unless more is known of it already.
--
-- KEYS[1] record
-- ARGV[1] send, generation, name, queue, root, takes_token, broker, unkept, eta (microseconds), task, prefix, ttl, waits
-- ARGV[2] the message, in JSON; '' where it is not kept
-- Answer  1 if it was written

local arg = cjson.decode(ARGV[1])
local record, problem = read(KEYS[1])
if not record and problem ~= 'absent' then return 0 end
record = record or {}
local state = record.state
-- A worker may have been faster; and a copy that continues a life says nothing new of it.
if state and not (FINAL[state] and (record.send or '') ~= arg.send) then return 0 end

local fields = {state=arg.eta and 'SCHEDULED' or 'ENQUEUED', eta=arg.eta or '', send=arg.send,
                generation=arg.generation, name=arg.name, queue=arg.queue or '', root=arg.root or '',
                takes_token=arg.takes_token or '', broker=arg.broker or '', unkept=arg.unkept or '', message=ARGV[2]}
if state then
  for _, name in ipairs({'attempt', 'execution', 'owner', 'worker', 'started_at', 'stopped_at', 'value', 'error',
                         'outcome', 'row', 'denied', 'outbox', 'pardoned', 'late_ack', 'checkpoint',
                         'shutdowns'}) do fields[name] = '' end
  for _, name in ipairs(REQUEST_FIELDS) do fields[name] = '' end
  -- The root of a workflow that is sent again: what was asked of the old life of it is over.
  if arg.root == arg.task then redis.call('DEL', arg.prefix .. ':mark:' .. arg.task) end
end
move(KEYS[1], arg, record, fields, now())
if record.root and record.root ~= arg.task then
  local members = arg.prefix .. ':members:' .. record.root
  redis.call('ZADD', members, now(), arg.task)
  redis.call('ZREMRANGEBYRANK', members, 0, -LIVE_LISTED - 1)
  keep_for(members, arg.waits)
end
return 1
