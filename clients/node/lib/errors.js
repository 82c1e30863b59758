"use strict";

/** An error with the HTTP status that the request should fail with, as Express, Koa and Fastify read it. */
class CloakroomError extends Error {
  constructor(status, code, message, cause) {
    super(message, cause && { cause });
    this.name = "CloakroomError";
    this.status = this.statusCode = status;
    this.expose = false; // the message is for the log
    this.code = code;
    // Frameworks log the stack of an error, and the lines of the client in it do not say more than the message.
    this.stack = String(this);
  }
}

const LIMITS = {
  session_too_large: "[session] max_bytes",
  body_too_large: "[session] max_bytes",
  too_many_values: "[session] max_values",
  invalid_key: "256 bytes for a key, which must not be empty",
};

/** Returns the error for a refusal of the session API. */
function refusal({ status, problem }, patch) {
  const code = problem.code ?? `status_${status}`;
  const said = problem.detail ?? problem.title;
  const reason = `${status} ${code}${said ? `: ${said}` : ""}`;
  if (status === 401) {
    const message = `this request did not come through Cloakroom: the session API refuses X-Session-Token (${reason})`;
    return new CloakroomError(403, code, message);
  }
  if (status >= 500) return new CloakroomError(503, code, `the session API is unavailable (${reason})`);
  if (status === 404 || status === 409 || status === 410) {
    return new CloakroomError(503, code, `the session API refuses the ${patch ? "write" : "read"} (${reason})`);
  }
  const limit = LIMITS[code] ? `; the limit is ${LIMITS[code]}` : "";
  return new CloakroomError(
    500,
    code,
    `the session API refuses the change (${reason}); changed ${sizes(patch)}${limit}`,
  );
}

/** Returns the keys of a patch, the largest first, with the bytes of their values. */
function sizes(patch) {
  const found = ["set", "append", "merge"].flatMap((member) =>
    Object.entries(patch?.[member] ?? {}).map(([key, value]) => [key, Buffer.byteLength(JSON.stringify(value))]),
  );
  found.sort((one, other) => other[1] - one[1]);
  const shown = found.slice(0, 5).map(([key, size]) => `"${key.slice(0, 100)}" (${size} bytes)`);
  return shown.join(", ") + (found.length > 5 ? ` and ${found.length - 5} others` : "") || "no values";
}

/** Returns the keys of a patch, for the log. */
function keysOf(patch) {
  const keys = ["set", "append", "merge"].flatMap((member) => Object.keys(patch[member] ?? {}));
  return [...keys, ...(patch.remove ?? [])].map((key) => JSON.stringify(key)).join(", ") || "no values";
}

module.exports = { CloakroomError, keysOf, refusal };
