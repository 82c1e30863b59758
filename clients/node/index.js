"use strict";

const { Api } = require("./lib/api");
const { CloakroomError } = require("./lib/errors");
const { hasDoubled, isProven } = require("./lib/proof");
const { RequestSession } = require("./lib/request");
const { holdResponse } = require("./lib/response");
const { readSettings } = require("./lib/settings");

const sessions = new WeakMap(); // of requests

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
    if (sessions.has(req)) return req.session;
    const { headers } = req;
    const token = headers["x-session-token"];
    if (token === undefined && this.#settings.fallback) return this.#loadStock(req, res);
    this.#verify(req);
    const isTrusted = this.#isTrusted(req);
    const data = isTrusted ? headers["x-session-data"] : undefined;
    const omitted = isTrusted ? headers["x-session-data-omitted"] : undefined;
    const principal = isTrusted ? headers["x-session-principal"] : undefined;
    const session = new RequestSession(this, req, res, {
      token,
      id: headers["x-session-id"],
      nextId: headers["x-session-next-id"],
      principal: principal && decodeURIComponent(principal),
      canExchange: data !== undefined || omitted !== undefined,
    });
    // A visitor without a session has no values. Values that did not fit are read now: `req.session` is synchronous.
    const isComplete = headers["x-session-id"] === undefined || (data !== undefined && omitted === undefined);
    await session.load(isComplete ? JSON.parse(data ?? "{}") : undefined);
    sessions.set(req, session);
    holdResponse(res, session, (error) => {
      this.log("error", error.message);
      fail(error);
    });
    return req.session;
  }

  log(level, message) {
    console[level](`cloakroom: ${message}`);
  }

  /** Logs what every request would repeat. */
  logOnce(message) {
    if (this.#logged.has(message)) return;
    this.#logged.add(message);
    this.log("error", message);
  }

  #verify(req) {
    const { secrets, url } = this.#settings;
    const { headers } = req;
    const refuse = (status, code) => {
      const error = new CloakroomError(status, code, `the request did not come through Cloakroom: ${code}`);
      this.logOnce(error.message);
      throw error;
    };
    // First, so that nothing of a request without a proof counts.
    if (secrets.length > 0 ? !isProven(req, secrets) : hasDoubled(req.rawHeaders)) refuse(403, "proof_wrong");
    if (headers["x-session-token"] === undefined) refuse(500, "request_token_missing");
    if (headers["x-session-url"]?.replace(/\/$/, "") !== url) refuse(403, "session_url_differs");
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
    return req.session;
  }
}

/** Returns express-session's middleware, for requests that did not come through Cloakroom. */
function stockSessions(fallback, cookie, log) {
  log("warn", "requests that do not come through Cloakroom get sessions of express-session, which are for development");
  if (typeof fallback === "function") return fallback;
  const path = require.resolve("express-session", { paths: [require.main?.path ?? process.cwd(), process.cwd()] });
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
