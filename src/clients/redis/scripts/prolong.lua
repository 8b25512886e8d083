-- Lets large outputs live on while their states do; the others go by themselves.
-- KEYS  1 index of the outputs, then for each: output, state
-- ARGV  1 life in ms, 2 when they are looked at again, then the member of each
-- Says  how many live on
local kept = 0
for i = 3, #ARGV do
  local blob, state = KEYS[2 * i - 4], KEYS[2 * i - 3]
  local life = redis.call('PTTL', state)
  if life == -2 or redis.call('EXISTS', blob) == 0 then
    redis.call('ZREM', KEYS[1], ARGV[i])
  else
    redis.call('PEXPIRE', blob, string.format('%.0f', math.max(life, tonumber(ARGV[1]))), 'GT')
    redis.call('ZADD', KEYS[1], 'XX', ARGV[2], ARGV[i])
    kept = kept + 1
  end
end
return kept
