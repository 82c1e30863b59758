-- Removes a session, whatever the key holds, but no tombstone. Returns the key, and 1 or 0.

local marker = redis.pcall('HGET', KEYS[1], 'm')
if type(marker) == 'table' and marker.err and not string.find(marker.err, 'WRONGTYPE', 1, true) then
  return marker
end
if type(marker) == 'string' and string.find(marker, '^%d+$') then
  return { KEYS[1], 0 }
end
return { KEYS[1], redis.call('DEL', KEYS[1]) }
