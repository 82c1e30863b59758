"use strict";

const { readFileSync } = require("node:fs");
const { CloakroomError } = require("./errors");

const DEFAULT_URL = "http://127.0.0.1:8081/_session";

/** Returns the settings of the options, or else of the environment. */
function readSettings(options = {}, env = process.env) {
  const url = options.url || env.CLOAKROOM_CLIENT_URL || DEFAULT_URL;
  const files = options.secrets ?? (env.CLOAKROOM_CLIENT_SECRETS || "").split(":").filter(Boolean);
  const trust = options.trust || env.CLOAKROOM_CLIENT_TRUST || undefined;
  const fallback = options.fallback || env.CLOAKROOM_CLIENT_FALLBACK || undefined;
  if (trust && trust !== "network") throw new TypeError(`CLOAKROOM_CLIENT_TRUST is "${trust}"; expected "network"`);
  if (fallback && fallback !== "stock" && typeof fallback !== "function") {
    throw new TypeError(`CLOAKROOM_CLIENT_FALLBACK is "${fallback}"; expected "stock"`);
  }
  if (options.unset && options.unset !== "keep" && options.unset !== "destroy") {
    throw new TypeError('unset option must be "destroy" or "keep"');
  }
  return {
    ...target(url),
    secrets: files.map(readSecret),
    trust,
    fallback,
    principal: options.principal || env.CLOAKROOM_CLIENT_PRINCIPAL || undefined,
    cookie: options.cookie,
    unset: options.unset,
  };
}

/** Returns where the session API listens: at a host and port, or at a Unix socket. */
function target(text) {
  const url = text.replace(/\/$/, "");
  const unix = /^http\+unix:\/\/([^/]+)(\/.*)?$/.exec(url);
  if (unix) {
    const address = { socketPath: decodeURIComponent(unix[1]), host: "localhost" };
    return { url, address, path: unix[2] ?? "" };
  }
  const parsed = new URL(url);
  if (parsed.protocol !== "http:") throw new TypeError(`CLOAKROOM_CLIENT_URL is "${url}"; expected http or http+unix`);
  const address = { host: parsed.hostname.replace(/^\[|\]$/g, ""), port: parsed.port || 80 };
  return { url, address, path: parsed.pathname.replace(/\/$/, "") };
}

function readSecret(path) {
  let text;
  try {
    text = readFileSync(path, "latin1");
  } catch (error) {
    throw wrongSecret(`cannot read the secret ${path} of CLOAKROOM_CLIENT_SECRETS: ${error.message}`);
  }
  const secret = Buffer.from(text.replace(/\r?\n$/, ""), "latin1");
  if (secret.length < 32) {
    throw wrongSecret(`a secret of CLOAKROOM_CLIENT_SECRETS is shorter than 32 bytes: ${path}`);
  }
  return secret;
}

function wrongSecret(message) {
  return new CloakroomError(500, "invalid_settings", message);
}

module.exports = { readSettings };
