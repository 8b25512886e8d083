-- Puts a document in the place of the one that it was made of, for whoever has the entry.
-- KEYS  1 work stream, 2 state
-- ARGV  1 group, 2 entry, 3 consumer, 4 deliveries, 5 document that was read, 6 document that replaces it
-- Says  ok | lost | {conflict, document} | {wrongtype, key}
if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]) then return 'lost' end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'string' then return {'wrongtype', KEYS[2]} end
local document = redis.call('GET', KEYS[2])
if document ~= ARGV[5] then return {'conflict', document} end
redis.call('SET', KEYS[2], ARGV[6], 'KEEPTTL')
return 'ok'
