-- Records which session keys an instance has, and since when every instance that has started since
-- had them: a key that this one does not have is removed. Returns what was recorded before.
-- Without keys it only reads.
-- KEYS[1] a sorted set; ARGV[1] now; from ARGV[2] the fingerprints of the keys.

local known = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
if #ARGV == 1 then
  return known
end
-- On the first start there is no other instance that could lack a key.
local since = #known == 0 and '0' or ARGV[1]
local own = {}
for at = 2, #ARGV do
  own[ARGV[at]] = true
  if not redis.call('ZSCORE', KEYS[1], ARGV[at]) then
    redis.call('ZADD', KEYS[1], since, ARGV[at])
  end
end
for at = 1, #known, 2 do
  if not own[known[at]] then
    redis.call('ZREM', KEYS[1], known[at])
  end
end
return known
