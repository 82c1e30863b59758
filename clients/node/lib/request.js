"use strict";

const { EventEmitter } = require("node:events");
const { isDeepStrictEqual } = require("node:util");
const { Cookie } = require("./cookie");
const { ascii, difference, isEmpty, snapshot, tagged, untagged } = require("./diff");
const { CloakroomError, keysOf, refusal } = require("./errors");
const { nameOf, userIn } = require("./principal");
const { Session, settle } = require("./session");

const MAX_HEADER_PATCH = 64 * 1024;
const NAMELESS = "the log-in has no principal: req.user has no username; set CLOAKROOM_CLIENT_PRINCIPAL";
// What a page goes out without. Another request has ended the session, or has put a value of another type there.
const LOST = new Map([
  ["session_gone", "another request has destroyed the session"],
  ["session_rotated", "another request has rotated the session"],
  ["request_gone", "the request has ended"],
  ["not_an_array", "another request has put a value of another type there"],
  ["not_an_object", "another request has put a value of another type there"],
]);

/** The session of one request: what was loaded, and what the request changes. */
class RequestSession {
  #client;
  #req;
  #res;
  #token;
  #canExchange; // whether patches go by response header
  #id;
  #nextId;
  #principal;
  #storedPrincipal; // before the changes of this request
  #loaded = new Map(); // the JSON text of each value in the store
  #login; // a name, null for a log-out, undefined for neither
  #isRegenerated = false;
  #isDestroyed = false;
  #isIdShown = false;
  #isSaved = false; // the application has saved what is written with the head
  #isHeadSent = false;
  #isClosed = false;
  #error; // of a save that the application was not told about
  #calls = Promise.resolve();
  #running = 0;

  constructor(client, req, res, { token, id, nextId, principal, canExchange }) {
    this.#client = client;
    this.#req = req;
    this.#res = res;
    this.#token = token;
    this.#id = id;
    this.#nextId = nextId;
    this.#principal = this.#storedPrincipal = principal ?? null;
    this.#canExchange = canExchange;
  }

  /** Sets `req.session`, `req.sessionID` and `req.sessionStore`; without values it reads them. */
  async load(values) {
    if (values) this.#show(values, new Cookie(this.#client.cookie));
    else await this.#read();
    Object.defineProperty(this.#req, "sessionID", { get: () => this.showId(), configurable: true, enumerable: true });
    this.#req.sessionStore = new RequestStore(this, this.#req);
    return this.#req.session;
  }

  get principal() {
    return this.#principal;
  }

  get #exists() {
    return this.#id !== undefined;
  }

  /** Returns the id, which the session then keeps: the next page has the same. */
  showId() {
    this.#isIdShown = true;
    if (!this.#exists) return this.#nextId;
    // Another id is known when the API has responded. An empty one stands for an id that it has not named.
    return this.#isRegenerated ? undefined : this.#id || undefined;
  }

  logIn(name) {
    if (typeof name !== "string" || name === "") throw new TypeError("a log-in needs the name of the user");
    this.#login = this.#principal = name;
  }

  logOut() {
    this.#login = this.#principal = null;
  }

  async save(isReported) {
    // A log-in or log-out is written with the head, which waits for it. passport saves, regenerates the session and
    // puts values back: all that is one patch.
    this.#isSaved = !this.#isHeadSent && this.#isChangingUser();
    if (!this.#isSaved) await this.#write(isReported);
  }

  async reload() {
    // What was not saved is dropped, as express-session does.
    const isPending = this.#isSaved || this.#isRegenerated || this.#isDestroyed || this.#login !== undefined;
    if (isPending) await this.#write();
    await this.#enqueue(() => this.#read());
    if (!this.#exists) throw new Error("failed to load session");
  }

  async destroy() {
    delete this.#req.session;
    this.#isDestroyed = true;
    this.#login = this.#principal = undefined;
  }

  async regenerate() {
    this.generate();
    this.#isRegenerated = true;
    this.#principal = null;
  }

  generate() {
    if (this.#isDestroyed) this.#isRegenerated = true;
    this.#isDestroyed = false;
    this.#req.session = new Session(this, new Cookie(this.#client.cookie));
  }

  /** Writes by the response header if possible; returns a promise if the head has to wait for a call. */
  beforeHead(status) {
    this.#isHeadSent = true;
    try {
      if (!this.#error && this.#running === 0 && this.#writeByHeader(status)) return undefined;
    } catch {
      // The call has the same error.
    }
    // An error page is not replaced by another.
    return status >= 500 ? this.#finish().catch((error) => this.#client.log("error", error.message)) : this.#finish();
  }

  /** Returns false if a call has to write. */
  #writeByHeader(status) {
    const change = this.#change();
    if (!change) return true;
    const header = this.#canExchange && status < 500 ? ascii(JSON.stringify(change.patch)) : undefined;
    if (!header || header.length >= MAX_HEADER_PATCH) return false;
    this.#res.setHeader("X-Session-Patch", header);
    this.#written(change);
    return true;
  }

  /** Writes what was changed after the head has left; returns a promise if there is something. */
  beforeEnd() {
    try {
      if (this.#running === 0 && !this.#change()) return undefined;
    } catch (error) {
      this.#client.log("error", error.message);
      return undefined;
    }
    return this.#write().catch((error) => {
      const hint =
        error.code === "response_committed" ? "; read req.session.id before the head to begin a session" : "";
      this.#client.log("error", `changes after the head of the response are lost: ${error.message}${hint}`);
    });
  }

  async #finish() {
    try {
      await this.#write();
      if (this.#error) throw this.#error;
    } catch (error) {
      // The page that reports the error is not another try.
      this.#isClosed = true;
      this.#error = undefined;
      throw error;
    }
  }

  async #write(isReported = true) {
    await this.#enqueue(async () => {
      try {
        await this.#send(this.#change());
      } catch (error) {
        // The write may have happened, so it is not repeated.
        if (error.status === 503) this.#isClosed = true;
        if (!isReported) this.#error = error;
        throw error;
      }
    });
  }

  async #send(change) {
    if (!change) return;
    const { patch } = change;
    const response = await this.#client.api.call("PATCH", "", this.#token, patch);
    const { code } = response.problem;
    // A log-in must not seem to have happened, and neither must a log-out, unless the session is gone.
    const isUserChange = patch.destroy || "principal" in patch;
    const canDrop = !isUserChange || (code === "session_gone" && typeof patch.principal !== "string");
    if (LOST.has(code) && canDrop) {
      this.#client.log("warn", `${LOST.get(code)} (${code}): dropped the changes of ${keysOf(patch)}`);
    } else if (response.status >= 300) {
      throw refusal(response, patch);
    }
    this.#written(change, response.body?.id);
  }

  /** Runs one call after another. */
  #enqueue(call) {
    this.#running += 1;
    const result = this.#calls.then(call).finally(() => (this.#running -= 1));
    this.#calls = result.catch(() => {});
    return result;
  }

  async #read() {
    const response = await this.#client.api.call("GET", "", this.#token);
    const { code } = response.problem;
    if (LOST.has(code)) this.#client.log("warn", `${LOST.get(code)} (${code}): the page goes out without it`);
    else if (response.status >= 300) throw refusal(response);
    const session = response.status < 300 ? response.body : {};
    this.#id = session.id ?? undefined;
    this.#nextId = session.next_id ?? this.#nextId;
    this.#principal = this.#storedPrincipal = session.principal ?? null;
    this.#isRegenerated = this.#isDestroyed = false;
    const { cookie } = this.#client;
    this.#show(session.values ?? {}, this.#exists ? Cookie.of(session, cookie) : new Cookie(cookie));
  }

  #show(values, cookie) {
    this.#loaded = snapshot(values, Session.isReserved);
    this.#req.session = new Session(this, cookie, untagged(values));
  }

  #texts() {
    return tagged(snapshot(this.#req.session, Session.isReserved), this.#loaded);
  }

  #isChangingUser() {
    return Boolean(this.#req.session) && (this.#isRegenerated || this.#loginOf(this.#texts()) !== undefined);
  }

  /** Returns the patch, and what the store has after it; undefined if nothing has changed. */
  #change() {
    const { session } = this.#req;
    if (this.#isClosed) return undefined;
    if (session === undefined || session === null) {
      const isEnded = this.#isDestroyed || this.#client.unset === "destroy";
      return isEnded && this.#exists ? { patch: { destroy: true }, texts: new Map(), isEnded } : undefined;
    }
    const texts = this.#texts();
    const login = this.#loginOf(texts);
    const isUseless = isEmpty(texts) && typeof login !== "string";
    let patch = {};
    let isNew = false;
    if (this.#exists && this.#isRegenerated && typeof login !== "string" && !this.#keepsAll(texts)) {
      patch = { destroy: true };
      if (isUseless) return { patch, texts, isEnded: true };
      patch.set = valuesOf(texts);
      isNew = true;
    } else if (this.#exists) {
      if (login !== undefined) patch.principal = login;
      if (login || this.#isRegenerated) patch.rotate = "id";
      const isLogIn = typeof login === "string";
      if (isLogIn && !this.#isRegenerated) Object.assign(patch, this.#changesOfLogIn(texts));
      else
        Object.assign(patch, this.#isRegenerated ? this.#replacement(texts, login) : difference(this.#loaded, texts));
    } else {
      if (isUseless && !this.#isIdShown) return undefined;
      if (login) patch.principal = login;
      if (!isUseless) Object.assign(patch, difference(this.#loaded, texts));
      isNew = true;
    }
    const expiry = session.cookie?.expiry(isNew);
    if (expiry) patch.expiry = expiry;
    if (Object.keys(patch).length === 0 && !isNew) return undefined;
    // What cannot be dropped is refused together with `if_lost`.
    if (!patch.destroy && !patch.rotate && !("principal" in patch)) patch.if_lost = "drop";
    return { patch, texts, login };
  }

  /**
   * Returns the members for a log-in: changed values are written whole, because the API removes the values of another
   * user, and there would be nothing to append to.
   */
  #changesOfLogIn(texts) {
    const changed = new Map([...texts].filter(([key, text]) => this.#loaded.get(key) !== text));
    const removed = [...this.#loaded.keys()].filter((key) => !texts.has(key)).sort();
    return { ...(changed.size > 0 && { set: valuesOf(changed) }), ...(removed.length > 0 && { remove: removed }) };
  }

  /** Returns the members that replace all values by what the application has put into the new session. */
  #replacement(texts, login) {
    const keepsNone = ![...this.#loaded.keys()].some((key) => texts.has(key));
    if (!keepsNone && typeof login === "string") return this.#changesOfLogIn(texts);
    if (!keepsNone) return difference(this.#loaded, texts);
    return texts.size > 0 ? { clear: true, set: valuesOf(texts) } : { clear: true };
  }

  /** Returns whether the application has regenerated the session only for another id. */
  #keepsAll(texts) {
    return this.#loaded.size > 0 && [...this.#loaded.keys()].every((key) => texts.has(key));
  }

  /** Returns the name of the user who logs in, null for a log-out, or undefined for neither. */
  #loginOf(texts) {
    if (this.#login !== undefined) return this.#login;
    const setting = this.#client.principal;
    const before = userIn(this.#loaded, setting);
    const now = userIn(texts, setting);
    if (now === undefined) return before === undefined ? undefined : null;
    const isAnother = !isDeepStrictEqual(before, now) || (this.#isRegenerated && !this.#keepsAll(texts));
    if (!isAnother) return undefined;
    const name = nameOf(now, setting, this.#req);
    if (name !== undefined) return name;
    this.#client.logOnce(NAMELESS);
    // The user before must not stay the principal of this one.
    return this.#storedPrincipal === null ? undefined : null;
  }

  #written({ patch, texts, login, isEnded }, id) {
    this.#loaded = texts;
    if (isEnded) this.#id = undefined;
    else if (patch.destroy || patch.rotate) this.#id = id ?? "";
    else this.#id ??= id ?? this.#nextId ?? "";
    if (login !== undefined) this.#principal = this.#storedPrincipal = login;
    if (isEnded || patch.destroy) this.#storedPrincipal = this.#principal ?? null;
    this.#login = undefined;
    this.#isRegenerated = this.#isDestroyed = this.#isSaved = false;
    this.#req.session?.cookie?.written();
  }
}

/** What express-session calls a store, for the session of one request. */
class RequestStore extends EventEmitter {
  #session;
  #req;

  constructor(session, req) {
    super();
    this.#session = session;
    this.#req = req;
  }

  generate() {
    this.#session.generate();
  }

  regenerate(_req, callback) {
    settle(this.#session.regenerate(), callback);
  }

  get(id, callback) {
    const { session } = this.#req;
    const own = id === this.#session.showId() && session ? { ...session, cookie: session.cookie } : undefined;
    const error = new CloakroomError(500, "not_supported", "req.sessionStore has the session of this request only");
    settle(own ? Promise.resolve(own) : Promise.reject(error), callback && ((failed) => callback(failed, own)));
  }

  set(_id, _session, callback) {
    settle(this.#session.save(callback !== undefined), callback);
  }

  touch(_id, _session, callback) {
    settle(Promise.resolve(), callback);
  }

  destroy(_id, callback) {
    settle(this.#session.destroy(), callback);
  }
}

function valuesOf(texts) {
  const values = Object.create(null);
  for (const [key, text] of texts) values[key] = JSON.parse(text);
  return values;
}

module.exports = { RequestSession };
