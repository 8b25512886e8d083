-- Renews entries that are ours, or hands them over; either way the delivery count stays.
-- KEYS  1 work stream
-- ARGV  1 group, 2 owner, 3 consumer that has them afterwards, 4 idle time in ms they then have,
--       5… entries and delivery counts in turn
-- Says  one character an entry: 1 if it was ours, 0 if not
local held, answer = {}, {}
for i = 5, #ARGV, 2 do
  if owned(KEYS[1], ARGV[1], ARGV[i], ARGV[2], ARGV[i + 1]) then held[#held + 1] = ARGV[i] end
end
local kept = {}
if #held > 0 then
  -- An entry that was deleted from the stream is not among those that come back.
  held[#held + 1] = 'IDLE'
  held[#held + 1] = ARGV[4]
  held[#held + 1] = 'JUSTID'
  for _, entry in ipairs(redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, unpack(held))) do kept[entry] = true end
end
for i = 5, #ARGV, 2 do answer[#answer + 1] = kept[ARGV[i]] and '1' or '0' end
return table.concat(answer)
