"use strict";

/** Changes a session by the operations of the tests of all clients (tests/clients/README.md). */
function apply(session, operations) {
  for (const [name, key, ...rest] of operations) {
    if (name === "set") session[key] = rest[0];
    else if (name === "remove") delete session[key];
    else if (name === "append") (session[key] ??= []).push(rest[0]);
    else if (name === "member") (session[key] ??= {})[rest[0]] = rest[1];
    else session[key] = (session[key] ?? 0) + rest[0];
  }
}

/** Returns the values without those of the framework. */
function valuesOf(session) {
  const { passport, cookie, ...values } = session;
  return values;
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

module.exports = { apply, sleep, valuesOf };
