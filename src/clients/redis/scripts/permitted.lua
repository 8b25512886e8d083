-- Whether our user may run what the scripts run: one that is refused a command halfway is not rolled back.
-- KEYS  1 work stream, 2 state, 3 done, 4 journal, 5 events, 6 dead letters, 7 parked work, 8 large output,
--       9 index of questions, 10 audit, 11 whole result of a tool
-- Says  what is refused, each as command and key; nothing if nothing is
local stream, state, done, journal, events, letters, parked, blob, questions, audit, result = unpack(KEYS)
local refused = {}
-- Redis knows this since 7.0; servers that only resemble it may not.
if not redis.acl_check_cmd then return refused end
local function try(...)
  local command = {...}
  if not redis.acl_check_cmd(unpack(command)) then
    local name, key = command[1], command[2]
    if name == 'XINFO' or name == 'XGROUP' then name, key = name .. ' ' .. key, command[3] end
    refused[#refused + 1] = name .. ' ' .. key
  end
end
try('TIME', '')
for _, key in ipairs(KEYS) do try('TYPE', key) end
try('XACK', stream, 'g', '0-1')
try('XDEL', stream, '0-1')
try('XRANGE', stream, '0-1', '0-1')
try('XPENDING', stream, 'g')
try('XCLAIM', stream, 'g', 'c', 0, '0-1')
try('XINFO', 'CONSUMERS', stream, 'g')
try('XINFO', 'GROUPS', events)
try('XGROUP', 'DELCONSUMER', stream, 'g', 'c')
for _, key in ipairs({stream, events, letters, audit}) do try('XADD', key, '*', 'data', '') end
try('XDEL', letters, '0-1')
try('XRANGE', letters, '0-1', '0-1')
try('XTRIM', events, 'MAXLEN', '~', 1)
for _, key in ipairs({state, done, journal, parked, questions}) do
  try('HGET', key, 'f')
  try('HSET', key, 'f', '')
  try('HDEL', key, 'f')
end
for _, key in ipairs({state, done, journal, blob, result}) do
  try('PEXPIRE', key, 1)
  try('PTTL', key)
  try('PERSIST', key)
  try('DEL', key)
end
try('HMGET', done, 'f')
try('HGETALL', journal)
try('HSETNX', journal, 'f', '')
try('HEXISTS', journal, 'f')
try('HLEN', journal)
try('HEXISTS', parked, 'f')
try('HINCRBY', parked, 'f', 1)
try('GET', state)
try('SET', state, '')
try('EXISTS', blob)
try('SET', result, '')
try('UNLINK', blob)
try('RENAME', blob, blob)
try('ZADD', parked, 0, 'm')
try('ZREM', parked, 'm')
try('ZSCORE', parked, 'm')
try('ZCARD', parked)
try('ZRANGEBYSCORE', parked, '-inf', 0)
return refused
