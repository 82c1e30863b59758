"use strict";

const { createHmac, timingSafeEqual } = require("node:crypto");

const SIGNED = ["url", "token", "id", "next-id", "principal", "version", "data", "data-omitted", "error"].map(
  (name) => `x-session-${name}`,
);
const MAX_AGE = 300; // seconds

/** Returns whether `X-Session-Proof` shows that the session headers come from Cloakroom. */
function isProven({ headers, rawHeaders }, secrets, now = Date.now()) {
  const proof = /^v1 t=(\d{1,12}) m=([\w-]{43})$/.exec(headers["x-session-proof"] ?? "");
  if (!proof || hasDoubled(rawHeaders)) return false;
  const [, seconds, mac] = proof;
  const lines = SIGNED.filter((name) => name in headers).map((name) => `${name}:${headers[name]}`);
  // Node reads header bytes as Latin-1.
  const text = Buffer.from(["cloakroom-proof-v1", seconds, ...lines].join("\n"), "latin1");
  const isOf = (secret) =>
    timingSafeEqual(Buffer.from(createHmac("sha256", secret).update(text).digest("base64url")), Buffer.from(mac));
  return secrets.some(isOf) && Math.abs(now / 1000 - Number(seconds)) <= MAX_AGE;
}

/** Returns whether a header that is signed was sent twice; Node joins the values. */
function hasDoubled(rawHeaders) {
  const seen = new Set();
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i].toLowerCase();
    if (!SIGNED.includes(name) && name !== "x-session-proof") continue;
    if (seen.has(name)) return true;
    seen.add(name);
  }
  return false;
}

module.exports = { hasDoubled, isProven };
