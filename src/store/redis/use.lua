-- Use::apply. ARGV[10] the generation; ARGV[11] '1' if it prolongs; ARGV[12] '1' if it sets the cookie;
-- ARGV[13] '1' if the request presented a token of the session.

local before = read()
if before.m or not before.v or now >= ends_at(before) then
  return {'stands', answered(before)}
end
local meta = copy(before)
if tonumber(meta.g) + 1 == tonumber(ARGV[10]) then
  meta.g = ARGV[10]
  meta.gs = ARGV[1]
  meta.k = ARGV[1]
  meta.pu = as_text(plus(now, grace))
end
if ARGV[11] == '1' and now > tonumber(meta.s) and tonumber(ARGV[10]) >= tonumber(meta.f) then
  meta.s = ARGV[1]
end
if ARGV[12] == '1' and meta.g == ARGV[10] then
  meta.k = ARGV[1]
end
if ARGV[13] == '1' and tonumber(ARGV[10]) >= tonumber(meta.f) then
  meta.q = nil
end
carry_unproven(meta)
meta.e = as_text(ends_at(meta))
if not is_indexed(meta, before) then
  return {'index', meta.p, meta.e}
end
write(meta, before)
return {'stands', answered(meta)}
