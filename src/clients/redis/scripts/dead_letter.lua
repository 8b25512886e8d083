-- Moves an entry that cannot be understood to the dead letters.
-- KEYS  1 work stream, 2 dead letters, 3 crashes
-- ARGV  1 group, 2 entry, 3 consumer, 4 deliveries, 5… fields and values of the letter
-- Says  ok | lost | {wrongtype, key}
if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]) then return 'lost' end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'stream' and kind ~= 'none' then return {'wrongtype', KEYS[2]} end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.pcall('HDEL', KEYS[3], ARGV[2])
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 5))
return 'ok'
