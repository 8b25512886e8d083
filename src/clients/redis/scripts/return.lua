-- Brings parked work back into its stream. Any number of movers may try at once: who removes it from the waiting
-- adds it again.
-- KEYS  1 work stream, 2 parked, 3 bodies, then for each piece of work: state, done, journal
-- ARGV  1 life in ms, then for each: first entry, field of its run ('' if it is not known), work id
-- Says  one character for each: 1 brought back, 0 not waiting any more or not due, - its body is gone
--       | {wrongtype, key}
for key, wanted in pairs({[KEYS[1]] = 'stream', [KEYS[2]] = 'zset', [KEYS[3]] = 'hash'}) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= wanted and kind ~= 'none' then return {'wrongtype', key} end
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- The run is running again as of this entry; the last parked run of a graph lets its state expire again.
local function resumed(state, done, journal, field, work_id, entry)
  local facts = redis.pcall('HMGET', done, field, 'held', 'kept')
  if facts.err then return end
  local parked = 'p\n' .. work_id .. '\n'
  if facts[1] and string.sub(facts[1], 1, #parked) == parked then
    redis.call('HSET', done, field, 'r\n' .. work_id .. '\n' .. KEYS[1] .. '\n' .. entry)
  end
  if redis.call('PTTL', journal) == -1 then redis.call('PEXPIRE', journal, ARGV[1]) end
  local held = tonumber(facts[2] or 0) or 0
  if held > 1 then
    redis.call('HSET', done, 'held', string.format('%.0f', held - 1))
  elseif held == 1 then
    redis.call('HDEL', done, 'held', 'kept')
    redis.call('PEXPIRE', done, ARGV[1])
    local kept = tonumber(facts[3] or 0) or 0
    -- A state that never expired goes on so, and one that got an expiry meanwhile is only prolonged.
    if kept >= 0 then
      local life = string.format('%.0f', math.max(kept, tonumber(ARGV[1])))
      if redis.call('PTTL', state) == -1 then
        redis.call('PEXPIRE', state, life)
      else
        redis.call('PEXPIRE', state, life, 'GT')
      end
    end
  end
end

local answer = {}
for i = 2, #ARGV, 3 do
  local first, flag = ARGV[i], '0'
  local due = redis.call('ZSCORE', KEYS[2], first)
  if due and tonumber(due) <= now and redis.call('ZREM', KEYS[2], first) == 1 then
    local body = redis.call('HMGET', KEYS[3], first, first .. ':meta')
    redis.call('HDEL', KEYS[3], first, first .. ':meta', first .. ':run')
    local entry = ''
    flag = '-'
    if body[1] then
      flag = '1'
      entry = redis.call('XADD', KEYS[1], '*', 'data', body[1], 'meta', body[2] or '{"origin":"' .. first .. '"}')
    end
    if ARGV[i + 1] ~= '' then
      resumed(KEYS[i + 2], KEYS[i + 3], KEYS[i + 4], ARGV[i + 1], ARGV[i + 2], entry)
    end
  end
  answer[#answer + 1] = flag
end
return table.concat(answer)
