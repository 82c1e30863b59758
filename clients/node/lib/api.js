"use strict";

const http = require("node:http");
const { CloakroomError } = require("./errors");

const CONNECT_TIMEOUT = 1_000;
const RESPONSE_TIMEOUT = 10_000;

/** The session API of the requests of this site, over kept connections. */
class Api {
  #target;
  #path;
  #agent = new http.Agent({ keepAlive: true });

  constructor({ address, path }) {
    this.#target = address;
    this.#path = path;
  }

  /**
   * Calls the session of a request token.
   *
   * @returns {Promise<{status: number, body?: any, problem: object}>} `problem` is empty for a success
   */
  async call(method, path, token, patch) {
    const content = patch === undefined ? undefined : Buffer.from(JSON.stringify(patch));
    const headers = { "X-Session-Token": token, Accept: "application/json" };
    if (content) Object.assign(headers, { "Content-Type": "application/json", "Content-Length": content.length });
    const options = { ...this.#target, agent: this.#agent, method, path: this.#path + path, headers };
    let response;
    try {
      response = await send(options, content);
    } catch (error) {
      // The API may close a kept connection just as a call is sent.
      // A write may have been seen all the same, and is not repeated.
      if (!error.isRepeatable || content) throw unreachable(error);
      response = await send({ ...options, agent: false }, content).catch((again) => Promise.reject(unreachable(again)));
    }
    const body = parse(response);
    return response.status < 300
      ? { status: response.status, body, problem: {} }
      : { ...response, problem: body ?? {} };
  }
}

function send(options, content) {
  return new Promise((resolve, reject) => {
    const request = http.request(options);
    const abort = (what) => request.destroy(Object.assign(new Error(what), { code: "ETIMEDOUT" }));
    const timer = setTimeout(abort, RESPONSE_TIMEOUT, `no response within ${RESPONSE_TIMEOUT} ms`);
    const fail = (error) => {
      clearTimeout(timer);
      const isClosed = error.code === "ECONNRESET" || error.code === "EPIPE";
      reject(Object.assign(error, { isRepeatable: request.reusedSocket && isClosed && !request.res }));
    };
    request.on("error", fail);
    request.on("socket", (socket) => {
      if (!socket.connecting) return;
      const connecting = setTimeout(abort, CONNECT_TIMEOUT, `no connection within ${CONNECT_TIMEOUT} ms`);
      socket.once("connect", () => clearTimeout(connecting)).once("close", () => clearTimeout(connecting));
    });
    request.on("response", (response) => {
      const chunks = [];
      response.on("error", fail);
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("end", () => {
        clearTimeout(timer);
        resolve({ status: response.statusCode, text: Buffer.concat(chunks).toString() });
      });
    });
    request.end(content);
  });
}

function parse({ status, text }) {
  try {
    return text === "" ? undefined : JSON.parse(text);
  } catch (cause) {
    if (status >= 300) return undefined;
    throw new CloakroomError(
      503,
      "malformed_response",
      "the session API responded with something other than JSON",
      cause,
    );
  }
}

function unreachable(cause) {
  return new CloakroomError(503, "api_unreachable", `the session API does not answer: ${cause.message}`, cause);
}

module.exports = { Api };
