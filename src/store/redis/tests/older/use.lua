-- Use::apply. ARGV[9] the generation; ARGV[10] '1' if it prolongs; ARGV[11] '1' if it sets the cookie.

local before = read()
if before.m or not before.v or now >= ends_at(before) then
  return {'stands', answered(before)}
end
local meta = copy(before)
if tonumber(meta.g) + 1 == tonumber(ARGV[9]) then
  meta.g = ARGV[9]
  meta.gs = ARGV[1]
  meta.k = ARGV[1]
  meta.pu = as_text(plus(now, grace))
end
if ARGV[10] == '1' and now > tonumber(meta.s) then
  meta.s = ARGV[1]
end
if ARGV[11] == '1' and meta.g == ARGV[9] then
  meta.k = ARGV[1]
end
meta.e = as_text(ends_at(meta))
if not is_indexed(meta, before) then
  return {'index', meta.p, meta.e}
end
write(meta, before)
return {'stands', answered(meta)}
