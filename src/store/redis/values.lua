-- Changes values of a session that the caller knows, and records the use: the part of patch.lua that most changes
-- need. Returns the key; then the new version, if anything has changed, and the texts before and after of the wanted
-- value. If the session is not as the caller knows it (Change::foreseen), the index does not have it, or the change
-- would be refused, nothing has changed, and patch.lua decides.
-- After the arguments come the fields of all values, then their operations, then the texts. Each argument, table and
-- number that becomes text costs as much as a field that is written.

local key = KEYS[1]
local FIXED = 10 -- so many fields are read before those of values

local ops = (#ARGV - LAST_ARG) / 3
local found =
  redis.call('HMGET', key, 'v', 'g', 'k', 'x', 's', 'e', 'n', 'b', 'i', 'j', unpack(ARGV, LAST_ARG + 1, LAST_ARG + ops))
local version, generation, cookie_set_at, expiry, last_seen_at, ends_at, count, bytes, indexed_until, held =
  unpack(found, 1, FIXED)

local is_known = version and generation and cookie_set_at
  and generation .. ' ' .. cookie_set_at .. ' ' .. (expiry or '') == arg_known
  and (held or '') == arg_held
  and (last_seen_at == arg_last_seen_at or tonumber(last_seen_at) < tonumber(arg_last_seen_at))
-- Only a session with a principal has an index.
local is_indexed = not indexed_until or tonumber(indexed_until) >= tonumber(arg_ends_at)
if not is_known or not is_indexed then
  return {key}
end

-- With room for two fields: a table that grows is copied.
local set, last = {nil, nil, nil, nil}, 0
local gone
local more, longer = 0, 0 -- the changes of count and bytes
local wanted, before, after = tonumber(arg_wanted)
for at = 1, ops do
  local field, old = ARGV[LAST_ARG + at], found[FIXED + at]
  local op, text = ARGV[LAST_ARG + ops + at], ARGV[LAST_ARG + 2 * ops + at]
  if op == 'remove' then
    text = nil
  elseif op == 'default' then
    text = old or text
  elseif op == 'append' then
    text = appended(old or '[]', text)
  elseif op == 'increment' and old then
    text = is_integer(old) and sum(old, text)
  end
  if text == false then
    return {key}
  end
  if at == wanted then
    before, after = old, text or false
  end
  if old then
    more, longer = more - 1, longer - #field - #old
  end
  if text then
    more, longer = more + 1, longer + #field + #text
    set[last + 1], set[last + 2] = field, text
    last = last + 2
  elseif old then
    gone = gone or {}
    gone[#gone + 1] = field
  end
end
longer = longer - more -- without the mark before each name
-- A session above a limit that was lowered since may still shrink.
if (more > 0 and count + more > tonumber(arg_max_values))
  or (longer > 0 and bytes + longer > tonumber(arg_max_bytes)) then
  return {key}
end
if more ~= 0 then
  set[last + 1], set[last + 2] = 'n', string.format('%d', count + more)
  last = last + 2
end
if longer ~= 0 then
  set[last + 1], set[last + 2] = 'b', string.format('%d', bytes + longer)
  last = last + 2
end

version = next_version(version)
redis.call('HSET', key, 'v', version, 's', arg_last_seen_at, 'e', arg_ends_at, unpack(set, 1, last))
if gone then
  redis.call('HDEL', key, unpack(gone))
end
-- The time to live comes last: if it has passed, the key is removed with it.
if ends_at ~= arg_ends_at then
  redis.call('PEXPIREAT', key, arg_ends_at)
end
return {key, version, before, after}
