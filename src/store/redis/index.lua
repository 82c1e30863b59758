-- Adds a session to a principal's index, or raises its end there; never lowers it. The index itself lives as
-- long as the last of its sessions.
-- KEYS[1] the index; ARGV[1] the end; ARGV[2] the id.

local score = redis.pcall('ZSCORE', KEYS[1], ARGV[2])
if type(score) == 'table' and score.err then
  if not string.find(score.err, 'WRONGTYPE', 1, true) then
    return score
  end
  -- An index never has another type; it is replaced, so that log-ins of this principal go on.
  redis.call('DEL', KEYS[1])
  score = false
end
if not score or tonumber(score) < tonumber(ARGV[1]) then
  redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
end
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', tonumber(last[2])))
return 1
