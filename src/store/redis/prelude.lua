-- The common part of the scripts that change a session: its fields, and when it expires.
-- The fields are described in fields.rs, the arguments (arg_…) in arguments.rs. KEYS[1] is the session's hash.
-- Times are below 2^53, which Lua's numbers hold exactly; values and versions are never numbers here.

local LAST = 253402300799999 -- Timestamp::MAX
local HELD_UNPROVEN = 86400000 -- Policy::HELD_UNPROVEN_TIMEOUT
local REPLY_FIELDS = 19 -- number of FIELDS in a reply: FIELDS in fields.rs, whose test compares them
local FIELDS = {
  'm', 'v', 'g', 'gs', 'pu', 'f', 'l', 'p', 'c', 's', 'k', 'x', 'w', 'q', 'h', 'j', 'ca', 'cu', 'id',
  'n', 'b', 'e', 'i',
}

local key = KEYS[1]
local now = tonumber(arg_now)
local idle_timeout = tonumber(arg_idle_timeout)
local touch_interval = tonumber(arg_touch_interval)
local absolute_timeout = tonumber(arg_absolute_timeout) -- nil for never
local grace = tonumber(arg_rotation_grace)
local linger = tonumber(arg_request_token_linger)
local unproven_timeout = tonumber(arg_unproven_timeout) -- nil for never

local function as_text(number)
  return string.format('%.0f', number)
end

local function plus(time, duration)
  return math.min(time + duration, LAST)
end

local function read()
  local found = redis.call('HMGET', key, unpack(FIELDS))
  local meta = {}
  for at, name in ipairs(FIELDS) do
    meta[name] = found[at] or nil
  end
  -- A session that an older release has used since is proven (encode.rs).
  if meta.q ~= meta.s or meta.g ~= meta.f or meta.p then
    meta.q = nil
  end
  return meta
end

-- Sets q, after all other fields.
local function carry_unproven(meta)
  meta.q = meta.q and meta.g == meta.f and not meta.p and meta.s or nil
end

-- Past::parse
local function past_of(meta)
  local counter, since, mark, former = string.match(meta.h or '', '^(%d+) (%S+) (%S) (.*)$')
  return {
    id_counter = tonumber(counter or 0),
    principal_since = tonumber(since),
    former_principal = former ~= '' and former or nil,
    unpresented = mark == 'u',
  }
end

-- Past::to_text, or nil
local function text_of_past(past)
  local since, former = past.principal_since, past.former_principal
  if past.id_counter == 0 and not since and not former and not past.unpresented then
    return nil
  end
  local mark = past.unpresented and 'u' or '-'
  return string.format('%d %s %s %s', past.id_counter, since and as_text(since) or '-', mark, former or '')
end

local function copy(meta)
  local copied = {}
  for name, text in pairs(meta) do
    copied[name] = text
  end
  return copied
end

local function answered(meta)
  local fields = {}
  for at = 1, REPLY_FIELDS do
    fields[at] = meta[FIELDS[at]] or false
  end
  return fields
end

-- Policy::ends_at
local function ends_at(meta)
  local kind = meta.x and string.sub(meta.x, 1, 1)
  local own = meta.x and tonumber(string.sub(meta.x, 2))
  local ends
  if meta.w then
    ends = plus(tonumber(meta.s), linger)
  elseif kind == 'a' then
    ends = own
  else
    local idle = own and math.min(own * 1000, LAST) or idle_timeout
    local slack = math.min(touch_interval, math.floor(idle / 10))
    ends = plus(plus(tonumber(meta.s), idle), slack)
  end
  if absolute_timeout then
    ends = math.min(ends, plus(tonumber(meta.c), absolute_timeout))
  end
  local unproven = meta.j and math.min(unproven_timeout or HELD_UNPROVEN, HELD_UNPROVEN) or unproven_timeout
  if meta.q and unproven then
    ends = math.min(ends, plus(tonumber(meta.c), unproven))
  end
  return ends
end

-- Returns whether the index has the session until its end, without which the record may not be written.
local function is_indexed(meta, before)
  local ends = tonumber(meta.e)
  if not meta.p then
    meta.i = nil
  elseif meta.p == before.p and before.i and tonumber(before.i) >= ends then
    meta.i = before.i
  elseif meta.p == arg_indexed_principal and tonumber(arg_indexed_until) >= ends then
    meta.i = arg_indexed_until
  else
    return false
  end
  return true
end

-- Writes what differs. The time to live comes last: if it has passed, the key is removed with it.
local function write(meta, before)
  local set, gone = {}, {}
  for _, name in ipairs(FIELDS) do
    local text = meta[name]
    if text == before[name] then
      -- unchanged
    elseif text then
      set[#set + 1] = name
      set[#set + 1] = text
    else
      gone[#gone + 1] = name
    end
  end
  if #set > 0 then
    redis.call('HSET', key, unpack(set))
  end
  if #gone > 0 then
    redis.call('HDEL', key, unpack(gone))
  end
  if meta.e ~= before.e then
    redis.call('PEXPIREAT', key, meta.e)
  end
end

