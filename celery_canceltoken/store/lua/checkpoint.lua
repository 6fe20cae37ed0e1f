-- A body saves how far it has come, for the next attempt to go on from.
--
-- KEYS[1] record
-- ARGV[1] execution
-- ARGV[2] checkpoint, in JSON
-- Answer  'saved' | 'superseded' | 'untracked' (there is no readable record)

local arg = cjson.decode(ARGV[1])
local record = read(KEYS[1])
if not record or not record.state then return 'untracked' end
if record.execution ~= arg.execution or record.state ~= 'PROCESSING' then return 'superseded' end
-- Progress was made: shutdowns may send it back as often again.
write(KEYS[1], {checkpoint=ARGV[2], shutdowns=''})
return 'saved'
