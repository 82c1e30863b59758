-- Change::apply. Everything is decided on a working table before anything lasting is written, because scripts
-- have no rollback.

local principal = arg_principal ~= '' and arg_principal or nil

local function refused(why, op)
  return {'refused', why, op or 0}
end

local before = read()
if before.m and now <= tonumber(before.m) then
  return refused('ended')
end
if before.m or not before.v or now >= ends_at(before) then
  return refused('gone')
end

local past = past_of(before)

-- Change::admit
if arg_authority == 'service' and tonumber(arg_generation) ~= past.id_counter then
  return refused('gone')
end
-- The held cookies are not those that were changed (held.rs).
if arg_held_tag ~= '' and redis.sha1hex(before.j or '') ~= arg_held_tag then
  return {'moved', {}, before.j or ''}
end
local logs_out = arg_logs_out == '1'
local away = arg_authority == 'stale'
  or (arg_authority == 'request' and tonumber(before.f) > tonumber(arg_generation))
local may_log_out = past.principal_since and past.principal_since <= tonumber(arg_generation)
local rotation = 'none'
if principal and not away then
  rotation = 'rotated'
elseif principal and before.p ~= principal then
  return refused(arg_authority == 'stale' and 'other principal' or 'rotated')
elseif principal and before.l and now <= plus(tonumber(before.l), grace) then
  rotation = 'joined'
elseif principal then
  rotation = 'rotated'
elseif away then
  if not (may_log_out and (logs_out or arg_only_destroys == '1')) then
    return refused('rotated')
  end
elseif (logs_out and before.p) or arg_rotate ~= '' or arg_held_rotates == '1' then
  rotation = 'rotated'
end
if arg_if_version ~= '' and arg_if_version ~= before.v then
  return refused('version moved')
end

-- The changed values: a text, or false if removed.
local work, cleared = {}, false
local count, bytes = tonumber(before.n), tonumber(before.b)

local function value(name)
  if work[name] ~= nil then
    return work[name]
  end
  return not cleared and redis.call('HGET', key, '=' .. name)
end

local function set(name, text)
  local old
  if work[name] ~= nil then
    old = work[name] and #work[name] or 0
  else
    old = cleared and 0 or redis.call('HSTRLEN', key, '=' .. name)
  end
  -- No JSON text is empty.
  if old > 0 then
    count, bytes = count - 1, bytes - #name - old
  end
  if text then
    count, bytes = count + 1, bytes + #name + #text
  end
  work[name] = text
end

local function clear()
  work, cleared, count, bytes = {}, true, 0, 0
end

-- The merges whose value is not the one that was merged into: number of the operation, and the value.
local moved, has_moved = {}, {}

-- Op::apply; returns the refusal, if any.
local ops = {
  clear = clear,
  clear_unless = function(owner)
    local had = before.p or past.former_principal
    if had and had ~= owner then
      clear()
    end
  end,
  set = set,
  default = function(name, text)
    if not value(name) then
      set(name, text)
    end
  end,
  remove = function(name)
    set(name, false)
  end,
  increment = function(name, by)
    local text = value(name)
    local total = by
    if text then
      if not is_integer(text) then
        return 'not an integer'
      end
      total = sum(text, by)
      if not total then
        return 'out of range'
      end
    end
    set(name, total)
  end,
  append = function(name, element)
    local longer = appended(value(name) or '[]', element)
    if not longer then
      return 'not an array'
    end
    set(name, longer)
  end,
  -- The text is the tag of the value that was merged into, and the result (merge.rs).
  merge = function(name, text, op)
    local met = value(name) or ''
    if redis.sha1hex(met) == string.sub(text, 1, 40) then
      set(name, string.sub(text, 41))
    elseif not has_moved[name] then
      has_moved[name] = true
      moved[#moved + 1] = {op, met}
    end
  end,
}

if arg_condition == 'missing' and value(arg_condition_key) then
  return refused('value exists')
elseif arg_condition == 'present' and not value(arg_condition_key) then
  return refused('no such value')
elseif arg_condition == 'tagged' then
  local text = value(arg_condition_key)
  if not text or redis.sha1hex(text) ~= arg_condition_tag then
    return refused('value moved')
  end
end
local value_before = arg_want == 'before' and value(arg_want_key)

for at = LAST_ARG + 1, #ARGV, 3 do
  local op = (at - LAST_ARG - 1) / 3
  local why = ops[ARGV[at]](ARGV[at + 1], ARGV[at + 2], op)
  if why and #moved == 0 then
    return refused(why, op)
  elseif why then
    -- After a merge that was not made, a refusal may be wrong.
    break
  end
end
if #moved > 0 then
  return {'moved', moved, false}
end
if count > math.max(tonumber(arg_max_values), tonumber(before.n)) then
  return refused('too many values')
end
local held_before = before.j and #before.j or 0
local held_after = arg_held_tag ~= '' and #arg_held or held_before
if bytes + held_after > math.max(tonumber(arg_max_bytes), tonumber(before.b) + held_before) then
  return refused('too large')
end

-- Change::change_meta
local meta = copy(before)
if arg_held_tag ~= '' then
  meta.j = arg_held ~= '' and arg_held or nil
end
meta.v = next_version(before.v)
meta.n, meta.b = as_text(count), as_text(bytes)
local touches = arg_touches == '1' and not (away and rotation == 'none')
if (touches or meta.w) and now > tonumber(meta.s) then
  meta.s = arg_now
end
if arg_expiry == '-' then
  meta.x = nil
elseif arg_expiry ~= '' then
  meta.x = arg_expiry
end
if rotation == 'rotated' then
  meta.g = as_text(math.min(tonumber(meta.g) + 2, 4294967295))
  meta.f = meta.g
  meta.gs = arg_now
  meta.pu = nil
  meta.w = nil
  meta.l = principal and arg_now
  past.unpresented = meta.j and true or false
  if arg_rotate == 'id' then
    past.id_counter = math.min(past.id_counter + 1, 65535)
  end
end
if principal then
  if before.p ~= principal then
    past.principal_since = tonumber(meta.g)
  end
  past.former_principal = nil
  meta.p = principal
elseif logs_out and before.p then
  past.former_principal = before.p
  meta.p, meta.l = nil, nil
end
meta.h = text_of_past(past)
if rotation ~= 'none' or arg_expiry ~= '' then
  meta.k = arg_now
end
carry_unproven(meta)
meta.e = as_text(ends_at(meta))

-- The requested values after the change: name, text, name, text.
local function wanted()
  local found = {}
  local function take(name, text)
    if text then
      found[#found + 1] = name
      found[#found + 1] = text
    end
  end
  if arg_want == 'value' or arg_want == 'before' then
    take(arg_want_key, value(arg_want_key))
  elseif arg_want == 'values' then
    local standing = cleared and {} or redis.call('HGETALL', key)
    for at = 1, #standing, 2 do
      local field = standing[at]
      if string.sub(field, 1, 1) == '=' and work[string.sub(field, 2)] == nil then
        take(string.sub(field, 2), standing[at + 1])
      end
    end
    for name, text in pairs(work) do
      take(name, text)
    end
  end
  return found
end

local stands = 'live'
local is_emptied = arg_held_emptied == '1' and count == 0 and not meta.p
if arg_only_destroys == '1' or is_emptied or now >= tonumber(meta.e) then
  stands = arg_leaves_tombstone == '1' and 'ended' or 'nothing'
elseif not is_indexed(meta, before) then
  return {'index', meta.p, meta.e}
end
local expiry = meta.x == before.x and 'same' or 'changed'
local answer = {'applied', rotation, stands, expiry, answered(meta), wanted(), value_before}

if stands ~= 'live' then
  redis.call('DEL', key)
  if stands == 'ended' then
    local till = as_text(plus(now, grace))
    redis.call('HSET', key, 'm', till, 'id', before.id)
    redis.call('PEXPIREAT', key, till)
  end
  return answer
end
if cleared then
  redis.call('DEL', key)
  before = {}
end
for name, text in pairs(work) do
  if text then
    redis.call('HSET', key, '=' .. name, text)
  else
    redis.call('HDEL', key, '=' .. name)
  end
end
write(meta, before)
return answer
