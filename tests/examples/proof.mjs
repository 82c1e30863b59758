// Verifies that a request came through Cloakroom. In the site, which gets CLIENT_SECRETS=client-secret:
//   import { isProven } from "./proof.mjs";
//   if (!isProven(request)) return response.writeHead(403).end();
import { createHmac, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";

const SIGNED = ["url", "token", "id", "next-id", "principal", "version", "data", "data-omitted", "error"];

// Two, while the secret is changed.
const secrets = process.env.CLIENT_SECRETS.split(":").map((path) => {
  const secret = Buffer.from(readFileSync(path, "utf8").replace(/\r?\n$/, ""));
  if (secret.length < 32) throw new Error(`${path} is too short`);
  return secret;
});

export function isProven({ headers }) {
  const proof = /^v1 t=(\d{1,12}) m=([\w-]{43})$/.exec(headers["x-session-proof"] ?? "");
  if (!proof) return false;
  const names = SIGNED.map((name) => `x-session-${name}`).filter((name) => name in headers);
  const text = ["cloakroom-proof-v1", proof[1], ...names.map((name) => `${name}:${headers[name]}`)].join("\n");
  const isRight = (secret) => {
    const mac = createHmac("sha256", secret).update(text, "latin1").digest("base64url");
    return timingSafeEqual(Buffer.from(mac), Buffer.from(proof[2]));
  };
  return secrets.some(isRight) && Math.abs(Date.now() / 1000 - Number(proof[1])) <= 300;
}
