-- Use::apply.

local before = read()
if before.m or not before.v or now >= ends_at(before) then
  return {'stands', answered(before)}
end
local meta = copy(before)
if tonumber(meta.g) + 1 == tonumber(arg_generation) then
  meta.g = arg_generation
  meta.gs = arg_now
  meta.k = arg_now
  meta.pu = as_text(plus(now, grace))
end
if arg_touches == '1' and now > tonumber(meta.s) and tonumber(arg_generation) >= tonumber(meta.f) then
  meta.s = arg_now
end
if arg_sets_cookie == '1' and meta.g == arg_generation then
  meta.k = arg_now
end
local proves = tonumber(arg_generation) >= tonumber(meta.f) and arg_proves
if proves and proves ~= '' then
  meta.q = nil
end
if proves == 'token' then
  local past = past_of(meta)
  past.unpresented = false
  meta.h = text_of_past(past)
end
carry_unproven(meta)
meta.e = as_text(ends_at(meta))
if not is_indexed(meta, before) then
  return {'index', meta.p, meta.e}
end
write(meta, before)
return {'stands', answered(meta)}
