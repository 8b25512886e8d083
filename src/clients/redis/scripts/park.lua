-- Takes an entry out of its stream until its wait is over.
-- KEYS  1 to 7 as in aside.lua, 8… other work streams
-- ARGV  1 to 10 as in aside.lua, 11 wait in ms
-- Says  ok | again | dup | lost | {wrongtype, key}
local verdict, data, other = leaving({}, 8)
if verdict then return verdict end
acknowledge()
if other then return 'dup' end
set_aside(data, clock() + tonumber(ARGV[11]))
return 'ok'
