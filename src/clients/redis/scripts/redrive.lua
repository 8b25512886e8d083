-- Puts the work of a dead letter into its stream again. Whoever comes second finds the letter gone.
-- KEYS  1 work stream, 2 dead letters, 3 done (absent where the letter names no run)
-- ARGV  1 letter, 2 work id, 3 meta of the new entry, 4 field of the run (absent likewise)
-- Says  {ok, entry} | gone | cut | empty | {taken, work id} | {wrongtype, key}
for i = 1, 2 do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'stream' and kind ~= 'none' then return {'wrongtype', KEYS[i]} end
end
local letter = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])[1]
if not letter then return 'gone' end
local data
for i = 1, #letter[2], 2 do
  local name, value = letter[2][i], letter[2][i + 1]
  if name == 'length' then return 'cut' end
  if name == 'data' then data = data or value end
end
if not data or data == '' then return 'empty' end

if KEYS[3] then
  local record = redis.pcall('HGET', KEYS[3], ARGV[4])
  if type(record) == 'table' then return {'wrongtype', KEYS[3]} end
  -- What ended is this very work, or began and is gone. Everything else is another execution's.
  local kind, work, rest = string.match(record or '', '^(%a)\n([^\n]*)\n?(.*)$')
  local free = not record or (kind == 'd' and work == ARGV[2])
  local stream, entry = string.match(rest or '', '^([^\n]*)\n([^\n]*)$')
  if kind == 'r' and stream == KEYS[1] then
    local found = redis.pcall('XRANGE', stream, entry, entry)
    free = found.err ~= nil or #found == 0
  end
  if not free then return {'taken', work or ''} end
end

-- The addition is first: at maxmemory it is refused, and then nothing was written.
local entry = redis.call('XADD', KEYS[1], '*', 'data', data, 'meta', ARGV[3])
if KEYS[3] then redis.call('HDEL', KEYS[3], ARGV[4]) end
redis.call('XDEL', KEYS[2], ARGV[1])
return {'ok', entry}
