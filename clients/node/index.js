"use strict";

const { Api } = require("./lib/api");
const { CloakroomError } = require("./lib/errors");
const { hasDoubled, isProven } = require("./lib/proof");
const { RequestSession } = require("./lib/request");
const { holdResponse } = require("./lib/response");
const { readSettings } = require("./lib/settings");

const sessions = new WeakMap(); // of requests
const loads = new WeakMap(); // of requests, the promises of their sessions
const UNUSED =
  "header exchange is on, but the client has no secret: X-Session-Data is not used; set CLOAKROOM_CLIENT_SECRETS";
const ELSEWHERE = "this request did not come through Cloakroom";

class Client {
  #settings;
  #stock;
  #logged = new Set();

  constructor(options) {
    this.#settings = readSettings(options);
    this.api = new Api(this.#settings);
    this.cookie = this.#settings.cookie;
    this.unset = this.#settings.unset;
    this.principal = this.#settings.principal;
  }

  /** Loads the session of a request; `fail` gets an error by which the response has to be replaced. */
  async load(req, res, fail) {
    // Two loads at once would otherwise give two sessions, of which one is not written.
    if (!loads.has(req)) loads.set(req, this.#load(req, res, fail));
    await loads.get(req);
    return req.session;
  }

  async #load(req, res, fail) {
    if (this.#settings.fallback && this.#isElsewhere(req)) return this.#loadStock(req, res);
    this.#verify(req);
    const { headers } = req;
    const isTrusted = this.#isTrusted(req);
    const find = (name) => (isTrusted ? headers[`x-session-${name}`] : undefined);
    const [data, omitted, principal] = [find("data"), find("data-omitted"), find("principal")];
    if (!isTrusted && (headers["x-session-data"] ?? headers["x-session-data-omitted"]) !== undefined) {
      this.logOnce(UNUSED);
    }
    const session = new RequestSession(this, req, res, {
      token: headers["x-session-token"],
      id: find("id"),
      nextId: find("next-id"),
      principal: principal && decodeURIComponent(principal),
      canExchange: data !== undefined || omitted !== undefined,
    });
    // A visitor without a session has no values. Values that did not fit are read now: `req.session` is synchronous.
    // So are the ids, which without trust only the API knows.
    const isComplete = headers["x-session-id"] === undefined || (data !== undefined && omitted === undefined);
    await session.load(isTrusted && isComplete ? JSON.parse(data ?? "{}") : undefined);
    sessions.set(req, session);
    holdResponse(res, session, (error) => {
      this.log("error", error.message);
      fail(error);
    });
  }

  log(level, message) {
    console[level](`cloakroom: ${message}`);
  }

  /** Logs what every request would repeat; messages with texts of visitors need a key without them. */
  logOnce(message, key = message) {
    if (this.#logged.has(key)) return;
    this.#logged.add(key);
    this.log("error", message);
  }

  #verify(req) {
    const { secrets, url } = this.#settings;
    const { headers } = req;
    // First, so that nothing of a request without a proof counts.
    if (secrets.length > 0 && !isProven(req, secrets)) {
      throw this.#refusal(
        403,
        "proof_wrong",
        `${ELSEWHERE}: X-Session-Proof is missing or wrong: open the site at Cloakroom's address, ` +
          "and give CLOAKROOM_CLIENT_SECRETS the file of [api] client_secret",
      );
    }
    if (secrets.length === 0 && hasDoubled(req.rawHeaders)) {
      throw this.#refusal(403, "proof_wrong", `${ELSEWHERE}: one of its X-Session-* headers was sent twice`);
    }
    if (headers["x-session-token"] === undefined) {
      const reason =
        secrets.length > 0
          ? 'the route of this request has session = "off", so it has no session: mount its pages before the middleware'
          : `${ELSEWHERE}: open the site at Cloakroom's address, by a route without session = "off"`;
      throw this.#refusal(500, "request_token_missing", reason);
    }
    if (headers["x-session-url"]?.replace(/\/$/, "") !== url) {
      const found = JSON.stringify(headers["x-session-url"] ?? "");
      throw this.#refusal(
        403,
        "session_url_differs",
        `${ELSEWHERE}: X-Session-Url is ${found}, but CLOAKROOM_CLIENT_URL is "${url}"`,
      );
    }
  }

  #refusal(status, code, message) {
    this.logOnce(message, code);
    return new CloakroomError(status, code, message);
  }

  /** Returns whether a request did not come through Cloakroom, or came by a route without sessions. */
  #isElsewhere(req) {
    const { secrets } = this.#settings;
    if (req.headers["x-session-token"] !== undefined) return false;
    const hasNone = !Object.keys(req.headers).some((name) => name.startsWith("x-session-"));
    return secrets.length === 0 || hasNone || isProven(req, secrets);
  }

  /** Returns whether the values in headers are Cloakroom's. */
  #isTrusted(req) {
    const { secrets, trust } = this.#settings;
    // On a Unix socket, the permissions of the socket decide who can connect.
    const isUnixSocket = typeof req.socket?.server?.address?.() === "string";
    return secrets.length > 0 || trust === "network" || isUnixSocket;
  }

  async #loadStock(req, res) {
    this.#stock ??= stockSessions(this.#settings.fallback, this.cookie, this.log);
    await new Promise((resolve, reject) => this.#stock(req, res, (error) => (error ? reject(error) : resolve())));
  }
}

/** Returns express-session's middleware, for requests that did not come through Cloakroom. */
function stockSessions(fallback, cookie, log) {
  let path;
  try {
    const paths = [require.main?.path ?? process.cwd(), process.cwd()];
    if (typeof fallback !== "function") path = require.resolve("express-session", { paths });
  } catch (cause) {
    const message = "CLOAKROOM_CLIENT_FALLBACK=stock needs the package express-session: npm install express-session";
    throw new CloakroomError(500, "invalid_settings", message, cause);
  }
  log("warn", "requests that do not come through Cloakroom get sessions of express-session, which are for development");
  if (typeof fallback === "function") return fallback;
  const secret = require("node:crypto").randomBytes(16).toString("hex");
  return require(path)({ secret, resave: false, saveUninitialized: false, cookie });
}

/**
 * Returns middleware for Express and Connect that sets `req.session`, `req.sessionID` and `req.sessionStore`.
 *
 * @param {import("./index").Options} [options] the default is the environment, `CLOAKROOM_CLIENT_*`
 */
function cloakroom(options) {
  const client = new Client(options);
  const middleware = (req, res, next) => {
    // Mounted twice, or after other sessions.
    if (req.session) return next();
    client.load(req, res, next).then(() => next(), next);
  };
  middleware.load = (req, res) => client.load(req, res, (error) => respondPlainly(res, error));
  return middleware;
}

/** Responds for applications without an error handler. */
function respondPlainly(res, { status }) {
  const title = status === 503 ? "Service Unavailable" : status === 403 ? "Forbidden" : "Internal Server Error";
  res.statusCode = status ?? 500;
  res.setHeader("Content-Type", "text/plain; charset=utf-8");
  res.end(`${title}\n`);
}

let shared;

/** Loads the session of a request with the settings of the environment, and sets `req.session`. */
cloakroom.load = (req, res) => (shared ??= cloakroom()).load(req, res);

/** Sets the principal, as the response leaves. Call it only if credentials were checked in this request. */
cloakroom.login = (req, name) => sessionOf(req).logIn(name);

/** Removes the principal, and keeps the values. */
cloakroom.logout = (req) => sessionOf(req).logOut();

/** Returns the principal of the session, or null. */
cloakroom.principal = (req) => sessions.get(req)?.principal ?? null;

cloakroom.CloakroomError = CloakroomError;

function sessionOf(req) {
  const session = sessions.get(req);
  if (!session) throw new Error("the request has no session of Cloakroom: load it first");
  return session;
}

module.exports = cloakroom;
