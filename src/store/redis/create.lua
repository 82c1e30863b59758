-- Creates a session unless its key exists. ARGV[1] its end; then field and text, for each. Returns the key, and 1
-- or 0.

if redis.call('EXISTS', KEYS[1]) == 1 then
  return { KEYS[1], 0 }
end
for at = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
end
redis.call('PEXPIREAT', KEYS[1], ARGV[1])
return { KEYS[1], 1 }
