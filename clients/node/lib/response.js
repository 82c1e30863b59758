"use strict";

const HEADERS_OF_THE_BODY = [
  "Content-Length", "Content-Type", "Content-Encoding", "Content-Range", "Transfer-Encoding",
  "ETag", "Last-Modified", "Cache-Control", "Location",
]; // prettier-ignore

/**
 * Holds the response while the session is written.
 *
 * The head waits, because Cloakroom sets the cookie when it leaves, and because a response must not claim what could
 * not be stored. If the head has left already, the end of the response waits.
 *
 * @param {object} session `beforeHead(status)` and `beforeEnd()` return a promise if the response has to wait
 * @param {(error: Error) => void} respond responds instead of the application if the session cannot be written
 */
function holdResponse(res, session, respond) {
  const original = { writeHead: res.writeHead, write: res.write, end: res.end, flushHeaders: res.flushHeaders };
  let isHeadSent = false;
  let isEnded = false;
  let isLate = false; // whether `end()` was called while the head was held
  let held; // the calls of the application while the response is held

  /** Holds what the application calls until a promise is settled. */
  function hold(promise, first = []) {
    held = first;
    const status = res.statusCode;
    const wasHeadSent = isHeadSent;
    if (!wasHeadSent) shadow(res, () => isEnded);
    const release = () => {
      if (!wasHeadSent) unshadow(res);
      const calls = held;
      held = undefined;
      return calls;
    };
    promise.then(
      () => {
        const calls = release();
        res.statusCode = status;
        isHeadSent = true;
        replay(calls);
      },
      (error) => {
        const calls = release();
        if (wasHeadSent) return replay(calls); // what is an error then was logged
        isEnded = false;
        isLate = false;
        for (const name of HEADERS_OF_THE_BODY) res.removeHeader(name);
        if (!res.stream) res.statusMessage = undefined; // HTTP/2 has none
        respond(error);
      },
    );
  }

  function replay(calls) {
    for (const [method, args] of calls) {
      if (method === "end" && isLate) {
        isLate = false;
        const writing = session.beforeEnd();
        if (writing) return hold(writing, [[method, args]]);
      }
      original[method].apply(res, args);
    }
    const isWaiting = calls.some(([method]) => method === "write");
    // Writers were asked to wait.
    if (isWaiting && !isEnded && !res.writableNeedDrain) res.emit("drain");
  }

  function beforeHead(status) {
    if (held || isHeadSent) return;
    const writing = session.beforeHead(status);
    if (writing) hold(writing);
    else isHeadSent = true;
  }

  res.writeHead = function writeHead(status, ...rest) {
    // Calls by which Node, or a module such as compression, sends the head of its own accord come while it is held, too.
    beforeHead(status);
    if (!held) return original.writeHead.call(res, status, ...rest);
    if (!held.some(([method]) => method === "writeHead")) held.push(["writeHead", [status, ...rest]]);
    return res;
  };

  res.flushHeaders = function flushHeaders() {
    beforeHead(res.statusCode);
    if (!held) return original.flushHeaders.call(res);
    held.push(["flushHeaders", []]);
  };

  res.write = function write(...args) {
    beforeHead(res.statusCode);
    if (!held) return original.write.apply(res, args);
    if (!isEnded) held.push(["write", args]);
    return false;
  };

  res.end = function end(...args) {
    if (isEnded) return held ? res : original.end.apply(res, args);
    // What was changed while the head was held is not in its patch.
    if (held) isLate = true;
    else if (isHeadSent) {
      const writing = session.beforeEnd();
      if (writing) hold(writing);
    }
    beforeHead(res.statusCode);
    isEnded = true;
    if (!held) return original.end.apply(res, args);
    held.push(["end", args]);
    return res;
  };

  // A visitor who leaves a stream ends it.
  res.once("close", () => {
    if (!isEnded && isHeadSent) session.beforeEnd()?.catch(() => {});
  });
}

/** Makes a response whose head is held look like one whose head has left. */
function shadow(res, isEnded) {
  const refuse = () => {
    const error = new Error("Cannot set headers after they are sent to the client");
    throw Object.assign(error, { code: "ERR_HTTP_HEADERS_SENT" });
  };
  for (const name of ["setHeader", "appendHeader", "removeHeader"]) {
    if (typeof res[name] === "function") define(res, name, { value: refuse, writable: true });
  }
  define(res, "headersSent", { get: () => true });
  define(res, "writableEnded", { get: isEnded });
}

const shadowed = new WeakMap();

function define(res, name, property) {
  const own = Object.getOwnPropertyDescriptor(res, name);
  if (!shadowed.has(res)) shadowed.set(res, []);
  shadowed.get(res).push([name, own]);
  Object.defineProperty(res, name, { ...property, configurable: true });
}

function unshadow(res) {
  for (const [name, own] of shadowed.get(res) ?? []) {
    delete res[name];
    if (own) Object.defineProperty(res, name, own);
  }
  shadowed.delete(res);
}

module.exports = { holdResponse };
