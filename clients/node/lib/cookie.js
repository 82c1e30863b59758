"use strict";

/**
 * The lifetime of the session, in the form of express-session's cookie.
 *
 * The cookie itself is Cloakroom's. Here only `maxAge` and `expires` have an effect: they become the session's expiry.
 */
class Cookie {
  #expires = null;
  #isChanged = false;

  constructor(options = {}) {
    Object.assign(this, { path: "/", httpOnly: true, originalMaxAge: null });
    const { data, maxAge, expires, ...rest } = options;
    Object.assign(this, rest);
    if (expires != null) this.expires = expires;
    if (maxAge != null) this.maxAge = maxAge;
    this.#isChanged = false;
  }

  /** Returns the cookie of a session object of the API. */
  static of(session, options) {
    const cookie = new Cookie(options);
    if (session.expires_at_browser_close) cookie.expires = null;
    else if (session.expires_in != null) cookie.maxAge = session.expires_in * 1000;
    if (session.expiry?.idle) cookie.originalMaxAge = session.expiry.idle * 1000;
    cookie.#isChanged = false;
    return cookie;
  }

  get expires() {
    return this.#expires;
  }

  set expires(date) {
    this.#expires = date;
    this.originalMaxAge = this.maxAge;
    this.#isChanged = true;
  }

  get maxAge() {
    return this.#expires instanceof Date ? this.#expires.valueOf() - Date.now() : this.#expires;
  }

  set maxAge(ms) {
    if (ms && typeof ms !== "number" && !(ms instanceof Date)) throw new TypeError("maxAge must be a number or Date");
    this.expires = typeof ms === "number" ? new Date(Date.now() + ms) : ms;
    if (typeof ms === "number") this.originalMaxAge = ms;
  }

  /** Sets `maxAge` to its original value, which changes nothing in the store. */
  reset() {
    const isChanged = this.#isChanged;
    this.maxAge = this.originalMaxAge;
    this.#isChanged = isChanged;
  }

  /** Returns the `expiry` of a patch; undefined for that of the policy, or if nothing has changed. */
  expiry(isNew) {
    const maxAge = this.originalMaxAge;
    if (!this.#isChanged && !(isNew && maxAge != null)) return undefined;
    return typeof maxAge === "number" ? { idle: Math.max(1, Math.round(maxAge / 1000)) } : { browser_close: true };
  }

  written() {
    this.#isChanged = false;
  }

  get data() {
    const { originalMaxAge, partitioned, priority, expires, secure, httpOnly, domain, path, sameSite } = this;
    return { originalMaxAge, partitioned, priority, expires, secure, httpOnly, domain, path, sameSite };
  }

  serialize(name, value) {
    const { domain, path, expires, httpOnly, secure, partitioned, sameSite } = this;
    const parts = [`${name}=${encodeURIComponent(value)}`];
    if (domain) parts.push(`Domain=${domain}`);
    if (path) parts.push(`Path=${path}`);
    if (expires instanceof Date) parts.push(`Expires=${expires.toUTCString()}`);
    if (httpOnly) parts.push("HttpOnly");
    if (secure) parts.push("Secure");
    if (partitioned) parts.push("Partitioned");
    if (sameSite) {
      const word = sameSite === true ? "strict" : String(sameSite).toLowerCase();
      parts.push(`SameSite=${word[0].toUpperCase()}${word.slice(1)}`);
    }
    return parts.join("; ");
  }

  toJSON() {
    return this.data;
  }
}

module.exports = { Cookie };
