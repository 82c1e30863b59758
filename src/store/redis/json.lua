-- Operations on the texts of values and versions, for the scripts that change values.
-- Lua's numbers are exact to 15 digits; longer ones are never numbers here.

local EXACT = 15

-- Json::as_integer
local function is_integer(text)
  if not string.find(text, '^%-?[1-9]%d*$') then
    return text == '0'
  end
  local edge = string.byte(text) == 45 and '-9223372036854775808' or '9223372036854775807'
  return #text < #edge or (#text == #edge and text <= edge)
end

-- Returns the sum of integers as text, or false if it does not fit. Redis adds long ones, in a temporary field.
local function sum(text, by)
  if #text <= EXACT and #by <= EXACT then
    return string.format('%d', text + by)
  end
  redis.call('HSET', KEYS[1], '+', text)
  local added = redis.pcall('HINCRBY', KEYS[1], '+', by)
  local total = type(added) == 'number' and redis.call('HGET', KEYS[1], '+')
  redis.call('HDEL', KEYS[1], '+')
  return total
end

-- Json::appended; the elements come without brackets.
local function appended(array, elements)
  if string.sub(array, 1, 1) ~= '[' then
    return false
  end
  local comma = (array == '[]' or elements == '') and '' or ','
  return string.sub(array, 1, -2) .. comma .. elements .. ']'
end

-- Returns the next number of 64 bits; 0 follows the last one.
local function next_version(version)
  if #version <= EXACT then
    return string.format('%d', version + 1)
  elseif version == '18446744073709551615' then
    return '0'
  end
  local head, last, nines = string.match(version, '^(%d-)([0-8]?)(9*)$')
  local up = last == '' and '1' or string.char(string.byte(last) + 1)
  return head .. up .. string.rep('0', #nines)
end
