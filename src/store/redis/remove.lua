-- Removes a session, and no marker. Answers the key, and 1 or 0.

if redis.call('HEXISTS', KEYS[1], 'm') == 1 then
  return { KEYS[1], 0 }
end
return { KEYS[1], redis.call('DEL', KEYS[1]) }
