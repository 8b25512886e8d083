-- What park.lua and wait.lua share: a run whose entry leaves its stream and comes back later.
-- KEYS  1 work stream, 2 done, 3 crashes, 4 parked, 5 bodies, 6 state, 7 journal
-- ARGV  1 group, 2 entry, 3 consumer, 4 deliveries, 5 field of the run, 6 record of the parked run, 7 work id,
--       8 first entry, 9 meta, 10 graph, node and run

-- The server's clock in ms.
local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Looks at everything that could fail before the first write, for a script is not rolled back. `kinds` are the types of
-- further keys, and `others` is the first of the other work streams in KEYS. Gives what to say if nothing is to be
-- written, else nil, the entry's data, and whether the run is another entry's.
local function leaving(kinds, others)
  local record = redis.pcall('HGET', KEYS[2], ARGV[5])
  if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]) then return record == ARGV[6] and 'again' or 'lost' end
  if type(record) == 'table' then return {'wrongtype', KEYS[2]} end
  kinds[KEYS[4]] = 'zset'
  kinds[KEYS[5]] = 'hash'
  for key, wanted in pairs(kinds) do
    local kind = redis.call('TYPE', key).ok
    if kind ~= wanted and kind ~= 'none' then return {'wrongtype', key} end
  end
  local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
  for i = 1, found and #found[2] or 0, 2 do
    if found[2][i] == 'data' then return nil, found[2][i + 1], taken(record, ARGV[7], others) end
  end
  -- Somebody deleted the entry: there is nothing to come back to.
  return 'lost'
end

-- The first write. It needs no memory, so the rest is allowed at maxmemory too.
local function acknowledge()
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  redis.call('XDEL', KEYS[1], ARGV[2])
  redis.pcall('HDEL', KEYS[3], ARGV[2])
end

-- Puts the run aside until a moment. It stays its own, and neither the graph's state nor what belongs to it expires
-- meanwhile: the graph's runs that wait remember how long the state had to live, and the last one gives that back.
local function set_aside(data, due)
  local first = ARGV[8]
  redis.call('ZADD', KEYS[4], string.format('%.0f', due), first)
  redis.call('HSET', KEYS[5], first, data, first .. ':meta', ARGV[9], first .. ':run', ARGV[10])
  redis.call('HSET', KEYS[2], ARGV[5], ARGV[6])
  local held = math.max(tonumber(redis.call('HGET', KEYS[2], 'held') or 0) or 0, 0)
  local life = redis.call('PTTL', KEYS[6])
  if held == 0 or life >= 0 then redis.call('HSET', KEYS[2], 'kept', string.format('%.0f', life)) end
  redis.call('HSET', KEYS[2], 'held', string.format('%.0f', held + 1))
  redis.call('PERSIST', KEYS[2])
  redis.call('PERSIST', KEYS[6])
  redis.call('PERSIST', KEYS[7])
end
