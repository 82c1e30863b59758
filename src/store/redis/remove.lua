-- Removes a session, and no marker.

if redis.call('HEXISTS', KEYS[1], 'm') == 1 then
  return 0
end
return redis.call('DEL', KEYS[1])
