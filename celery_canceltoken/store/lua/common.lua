-- Put before every script. A record is one hash; `v` is its format version.

local FORMAT = 1
local CAUSES = {REVOKED=true, DELETED=true, REQUEUED=true, SHUTDOWN=true, SUPERSEDED=true, LEASE_LOST=true, TIMEOUT=true}
local RANK = {requeue=0, revoke=1, delete=2}
local FINAL = {SUCCEEDED=true, FAILED=true, REVOKED=true, DELETED=true, IGNORED=true, REJECTED=true}
local STATES = {ENQUEUED=true, PROCESSING=true, FINISHING=true}

-- Microseconds since the epoch, as text: a Lua number of this size would lose digits when printed.
local function now()
  local time = redis.call('TIME')
  return time[1] .. string.format('%06d', tonumber(time[2]))
end

local function earlier(moment, microseconds)
  return string.format('%.0f', tonumber(moment) - tonumber(microseconds))
end

local function is_count(text)
  return text == nil or string.match(text, '^%d+$') ~= nil
end

-- Whether all that the scripts go by can be understood.
local function makes_sense(record)
  local state = record.state
  return (state == nil or FINAL[state] or STATES[state])
    and (state ~= 'FINISHING' or FINAL[record.outcome])
    and is_count(record.generation) and is_count(record.attempt)
    and (record.cause == nil or CAUSES[record.cause])
    and (record.request == nil or (RANK[record.kind] and record.cause))
end

-- The agent of an owner, whatever its incarnation.
local function agent_of(owner)
  return string.match(owner or '', '^(.*)%.%d+$')
end

-- The record as a table, or nil and why it cannot be used ('absent', 'damaged', 'newer').
local function read(key)
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'none' then return nil, 'absent' end
  if kind ~= 'hash' then return nil, 'damaged' end
  local flat = redis.call('HGETALL', key)
  local record = {}
  for i = 1, #flat, 2 do record[flat[i]] = flat[i + 1] end
  if not record.v or not is_count(record.v) then return nil, 'damaged' end
  if tonumber(record.v) > FORMAT then return nil, 'newer' end
  if not makes_sense(record) then return nil, 'damaged' end
  return record
end

-- Sets the fields that have a value and removes those that have none.
local function write(key, fields)
  for name, value in pairs(fields) do
    if value == '' or value == false then
      redis.call('HDEL', key, name)
    else
      redis.call('HSET', key, name, value)
    end
  end
end

local function pending(record)
  return record.request and record.answer == 'pending'
end

-- Never shortens: a stored request may have to outlive the record's own time.
local function keep_for(key, milliseconds)
  if redis.call('PTTL', key) < tonumber(milliseconds) then redis.call('PEXPIRE', key, milliseconds) end
end
