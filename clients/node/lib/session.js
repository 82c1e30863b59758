"use strict";

/**
 * The session of a request, with the methods of express-session.
 *
 * Its own enumerable properties are the values. Everything else is on the prototype, because middleware copies,
 * lists and serializes sessions.
 */
class Session {
  #request;
  #cookie;

  constructor(request, cookie, values = {}) {
    this.#request = request;
    this.#cookie = cookie;
    for (const [key, value] of Object.entries(values)) {
      if (RESERVED.has(key)) continue;
      // Not by assignment: a key can be `__proto__`.
      Object.defineProperty(this, key, { value, configurable: true, enumerable: true, writable: true });
    }
  }

  /** Returns whether a key is a name of express-session's own, and so cannot be a value. */
  static isReserved(key) {
    return RESERVED.has(key);
  }

  /** The id; undefined between `regenerate()` and the response, since Cloakroom gives it then. */
  get id() {
    return this.#request.showId();
  }

  get cookie() {
    return this.#cookie;
  }

  touch() {
    return this.resetMaxAge();
  }

  resetMaxAge() {
    this.#cookie.reset();
    return this;
  }

  save(callback) {
    settle(this.#request.save(callback !== undefined), callback);
    return this;
  }

  reload(callback) {
    settle(this.#request.reload(), callback);
    return this;
  }

  destroy(callback) {
    settle(this.#request.destroy(), callback);
    return this;
  }

  regenerate(callback) {
    settle(this.#request.regenerate(), callback);
    return this;
  }
}

const RESERVED = new Set(["id", "cookie", "req", "touch", "resetMaxAge", "save", "reload", "destroy", "regenerate"]);

/** Gives the result of a promise to a callback; what the callback throws is an uncaught exception. */
function settle(promise, callback = () => {}) {
  promise.then(
    () => process.nextTick(callback, null),
    (error) => process.nextTick(callback, error),
  );
}

module.exports = { Session, settle };
