-- Put before every script. A record is one hash; `v` is its format version.

local FORMAT = 1
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

-- The record as a table, or nil and why it cannot be used ('absent', 'damaged', 'newer').
local function read(key)
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'none' then return nil, 'absent' end
  if kind ~= 'hash' then return nil, 'damaged' end
  local flat = redis.call('HGETALL', key)
  local record = {}
  for i = 1, #flat, 2 do record[flat[i]] = flat[i + 1] end
  local version = tonumber(record.v)
  if not version then return nil, 'damaged' end
  if version > FORMAT then return nil, 'newer' end
  if record.state and not FINAL[record.state] and not STATES[record.state] then return nil, 'damaged' end
  if not tonumber(record.generation or '0') or not tonumber(record.attempt or '0') then return nil, 'damaged' end
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
