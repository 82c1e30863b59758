"use strict";

const assert = require("node:assert/strict");
const { once } = require("node:events");
const fs = require("node:fs");
const http = require("node:http");
const net = require("node:net");
const path = require("node:path");
const test = require("node:test");
const { Api } = require("../lib/api");
const { ascii, difference, snapshot, tagged, untagged } = require("../lib/diff");
const { userIn } = require("../lib/principal");
const { isProven } = require("../lib/proof");
const { readSettings } = require("../lib/settings");
const cloakroom = require("..");
const { SECRET, captureLog, fetchFrom, temporaryDirectory } = require("./harness");

const DIFFERENCES = [
  // before, after, patch
  [{ a: 1 }, { a: 1 }, {}],
  [{ a: 1 }, { a: 2 }, { set: { a: 2 } }],
  [{ a: 1 }, { a: null }, { set: { a: null } }],
  [{ b: 1, a: 1 }, {}, { remove: ["a", "b"] }],
  [{ a: { x: 1, y: 2 } }, { a: { y: 2, x: 1 } }, {}],
  [{ a: [] }, { a: [1, null] }, { append: { a: [1, null] } }],
  [{ a: [1] }, { a: [1, 2] }, { append: { a: [2] } }],
  [{ a: [1, 2] }, { a: [1] }, { set: { a: [1] } }],
  [{ a: [{ x: 1 }] }, { a: [{ x: 2 }, 3] }, { set: { a: [{ x: 2 }, 3] } }],
  [{}, { a: [1] }, { append: { a: [1] } }],
  [{}, { a: [] }, { set: { a: [] } }],
  [{}, { a: { x: 1 } }, { merge: { a: { x: 1 } } }],
  [{}, { a: {} }, { set: { a: {} } }],
  [{}, { a: { x: { y: null } } }, { set: { a: { x: { y: null } } } }],
  [{ a: { x: 1 } }, { a: { x: 1, y: { z: 1 } } }, { merge: { a: { y: { z: 1 } } } }],
  [{ a: { x: 1 } }, { a: {} }, { merge: { a: { x: null } } }],
  [{ a: { x: { y: 1, z: 1 } } }, { a: { x: { y: 1 } } }, { merge: { a: { x: { z: null } } } }],
  [{ a: { x: { y: 1, z: 1 } } }, { a: { x: { y: null, z: 1 } } }, { set: { a: { x: { y: null, z: 1 } } } }],
  [{ a: { x: null, y: 1 } }, { a: { x: null, y: 2 } }, { merge: { a: { y: 2 } } }],
  [{ a: { x: 1 } }, { a: { x: [null] } }, { set: { a: { x: [null] } } }],
  [{ a: { x: [1] } }, { a: { x: [1, 2] } }, { merge: { a: { x: [1, 2] } } }],
  [{ a: [] }, { a: { x: 1 } }, { set: { a: { x: 1 } } }],
  [{ a: { x: 1 } }, { a: [1] }, { set: { a: [1] } }],
  [{ a: { x: 1 } }, { a: "x" }, { set: { a: "x" } }],
  // Values of other languages
  [
    { a: { $cloakroom: { php: "YQ==" } } },
    { a: { $cloakroom: { php: "Yg==" } } },
    { set: { a: { $cloakroom: { php: "Yg==" } } } },
  ],
  [{ a: { " t": [1] } }, { a: { " t": [1, 2] } }, { set: { a: { " t": [1, 2] } } }],
  [{}, { a: { " di": { x: 1 } } }, { set: { a: { " di": { x: 1 } } } }],
  // What JSON leaves out
  [{ a: 1 }, { a: undefined }, { remove: ["a"] }],
  [{}, { a: () => {}, b: new Date(0) }, { set: { b: "1970-01-01T00:00:00.000Z" } }],
];

test("difference", () => {
  for (const [before, after, expected] of DIFFERENCES) {
    const patch = JSON.parse(JSON.stringify(difference(snapshot(before), snapshot(after))));
    assert.deepEqual(patch, expected, `${JSON.stringify(before)} to ${JSON.stringify(after)}`);
  }
});

test("a key can be __proto__", () => {
  const values = JSON.parse('{"__proto__": {"x": 1}, "a": {"__proto__": 1}}');
  const patch = JSON.stringify(difference(snapshot({}), snapshot(values)));
  assert.equal(patch, '{"merge":{"__proto__":{"x":1},"a":{"__proto__":1}}}');
});

test("a value that is not JSON is named", () => {
  const circular = {};
  circular.self = circular;
  for (const value of [1n, circular]) assert.throws(() => snapshot({ basket: value }), /"basket" is not JSON/);
});

test("halves of surrogate pairs are replaced", () => {
  const texts = snapshot({ a: "\ud800", b: "\\ud800 \\\\", c: "\ud83d\ude00", d: "\\\udc00" });
  const values = [...texts.values()].map((text) => JSON.parse(text));
  assert.deepEqual(values, ["\ufffd", "\\ud800 \\\\", "\ud83d\ude00", "\\\ufffd"]);
});

test("headers are ASCII", () => {
  const value = { a: "Zoë \u{1f600} \u007f\u0080\n" };
  const text = ascii(JSON.stringify(value));
  assert.match(text, /^[\x20-\x7e]+$/);
  assert.deepEqual(JSON.parse(text), value);
});

const REFERENCE = fs.readFileSync(path.join(__dirname, "../../../docs/reference/headers.md"), "utf8");
const VECTORS = JSON.parse(/Test vectors:\s+```json\n([^`]+)```/.exec(REFERENCE)[1]);

function requestOf({ headers, proof }) {
  const all = { ...headers, "x-session-proof": proof };
  return { headers: all, rawHeaders: Object.entries(all).flat() };
}

test("proofs of the reference", () => {
  assert.equal(VECTORS.length, 5);
  for (const vector of VECTORS) {
    const secret = Buffer.from(vector.secret);
    const now = vector.t * 1000;
    const isValid = (request, secrets = [secret], at = now) => isProven(request, secrets, at);
    assert.ok(isValid(requestOf(vector)));
    assert.ok(isValid(requestOf(vector), [Buffer.alloc(32), secret]), "the second of two secrets");
    assert.ok(!isValid(requestOf(vector), [Buffer.alloc(32)]));
    for (const seconds of [-300, 300]) assert.ok(isValid(requestOf(vector), [secret], now + seconds * 1000));
    for (const seconds of [-301, 301]) assert.ok(!isValid(requestOf(vector), [secret], now + seconds * 1000));
    for (const name of Object.keys(vector.headers)) {
      const { [name]: value, ...others } = vector.headers;
      assert.ok(!isValid(requestOf({ ...vector, headers: others })), `without ${name}`);
      assert.ok(!isValid(requestOf({ ...vector, headers: { ...others, [name]: `${value}x` } })), `another ${name}`);
    }
    for (const name of ["x-session-token", "X-Session-Proof"]) {
      const doubled = requestOf(vector);
      doubled.rawHeaders.push(name, "x");
      assert.ok(!isValid(doubled), `two of ${name}`);
    }
    const missing = requestOf(vector);
    delete missing.headers["x-session-proof"];
    assert.ok(!isValid(missing));
    for (const proof of ["", "v1", vector.proof.slice(0, -1), `${vector.proof} `, vector.proof.replace("v1", "v2")]) {
      assert.ok(!isValid(requestOf({ ...vector, proof })), proof);
    }
    assert.ok(!isValid(requestOf({ ...vector, headers: { ...vector.headers, "x-session-error": "added" } })));
  }
});

test("settings", (t) => {
  const directory = temporaryDirectory(t);
  const file = (name, text) => {
    fs.writeFileSync(path.join(directory, name), text);
    return path.join(directory, name);
  };
  assert.equal(readSettings({}, {}).url, "http://127.0.0.1:8081/_session");
  assert.deepEqual(readSettings({}, { CLOAKROOM_CLIENT_URL: "http+unix://%2Frun%2Fapi.sock/_session/" }).address, {
    socketPath: "/run/api.sock", host: "localhost",
  }); // prettier-ignore
  assert.equal(readSettings({}, { CLOAKROOM_CLIENT_URL: "http://[::1]:80/_session" }).address.host, "::1");
  const secrets = `${file("new", `${SECRET}\r\n`)}:${file("old", `${SECRET}\n\n`)}`;
  const found = readSettings({}, { CLOAKROOM_CLIENT_SECRETS: secrets }).secrets.map(String);
  assert.deepEqual(found, [SECRET, `${SECRET}\n`], "without one line end");
  const wrong = { CLOAKROOM_CLIENT_SECRETS: file("short", "short") };
  assert.throws(() => readSettings({}, wrong), {
    message: `a secret of CLOAKROOM_CLIENT_SECRETS is shorter than 32 bytes: ${directory}/short`,
  });
  for (const [name, reason] of [
    ["missing", "ENOENT: no such file or directory, open"],
    ["", "EISDIR"],
  ]) {
    const unreadable = { CLOAKROOM_CLIENT_SECRETS: path.join(directory, name) };
    assert.throws(
      () => readSettings({}, unreadable),
      (error) => {
        assert.ok(
          error.message.startsWith(
            `cannot read the secret ${path.join(directory, name)} of CLOAKROOM_CLIENT_SECRETS: ${reason}`,
          ),
          error.message,
        );
        assert.doesNotMatch(error.stack, /^ +at /m);
        return true;
      },
    );
  }
  assert.throws(() => readSettings({}, { CLOAKROOM_CLIENT_TRUST: "all" }), /CLOAKROOM_CLIENT_TRUST is "all"/);
  assert.throws(() => readSettings({}, { CLOAKROOM_CLIENT_FALLBACK: "no" }), /CLOAKROOM_CLIENT_FALLBACK is "no"/);
  assert.throws(() => readSettings({}, { CLOAKROOM_CLIENT_URL: "https://127.0.0.1/" }), /expected http/);
});

async function listen(t, server) {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close());
  const { port } = server.address();
  return new Api(readSettings({ url: `http://127.0.0.1:${port}/_session` }, {}));
}

test("connections to the API are kept", async (t) => {
  const sockets = new Set();
  const server = http.createServer((req, res) => {
    sockets.add(req.socket);
    res.end("{}");
  });
  t.after(() => server.closeAllConnections());
  const api = await listen(t, server);
  for (let i = 0; i < 3; i += 1) await api.call("PATCH", "", "x", {});
  assert.equal(sockets.size, 1);
});

test("only a call on a kept connection is repeated", async (t) => {
  let count = 0;
  const server = net.createServer((socket) => {
    let calls = 0;
    socket
      .on("error", () => {})
      .on("data", () => {
        count += 1;
        calls += 1;
        if (calls === 2) return socket.destroy();
        socket.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
      });
    t.after(() => socket.destroy());
  });
  const api = await listen(t, server);
  await api.call("GET", "", "x");
  await api.call("GET", "", "x");
  assert.equal(count, 3);

  let calls = 0;
  const closing = net.createServer((socket) => {
    socket
      .on("error", () => {})
      .on("data", () => {
        calls += 1;
        socket.destroy();
      });
  });
  const closed = await listen(t, closing);
  await assert.rejects(closed.call("PATCH", "", "x", {}), { status: 503 });
  assert.equal(calls, 1);
});

test("an API that does not answer is a 503 after 10 seconds", async (t) => {
  const sockets = [];
  const server = net.createServer((socket) => sockets.push(socket.on("error", () => {})));
  t.after(() => sockets.forEach((socket) => socket.destroy()));
  const api = await listen(t, server);
  const start = Date.now();
  await assert.rejects(api.call("PATCH", "", "x", {}), { status: 503 });
  assert.ok(Math.abs(Date.now() - start - 10_000) < 1_000);
  assert.equal(sockets.length, 1, "and is not called again");
});

test("a refused log-in or log-out does not look like one", async (t) => {
  const log = captureLog(t);
  const api = http.createServer((req, res) => {
    const code = req.headers["x-session-token"];
    const status = code === "request_gone" ? 410 : 409;
    if (req.method === "GET") return res.end('{"id": "x", "values": {"a": 1}}');
    res.writeHead(status).end(JSON.stringify({ status, code }));
  });
  t.after(() => api.closeAllConnections());
  await listen(t, api);
  const url = `http://127.0.0.1:${api.address().port}/_session`;
  const sessions = cloakroom({ url });
  const changes = {
    "/value": (req) => (req.session.a = 2),
    "/login": (req) => cloakroom.login(req, "ada"),
    "/logout": (req) => cloakroom.logout(req),
    "/destroy": (req) => req.session.destroy(),
  };
  const site = http.createServer((req, res) => {
    sessions(req, res, (error) => {
      if (error) return res.writeHead(error.status).end();
      changes[req.url](req);
      res.end("page");
    });
  });
  site.listen(0, "127.0.0.1");
  await once(site, "listening");
  t.after(() => site.close() && site.closeAllConnections());
  for (const [code, target, status] of [
    ["request_gone", "/value", 200],
    ["request_gone", "/login", 503],
    ["request_gone", "/logout", 503],
    ["request_gone", "/destroy", 503],
    ["session_gone", "/value", 200],
    ["session_gone", "/logout", 200],
    ["session_gone", "/destroy", 200],
    ["session_rotated", "/login", 503],
    ["session_rotated", "/logout", 503],
    ["not_an_array", "/value", 200],
  ]) {
    const headers = { "X-Session-Url": url, "X-Session-Id": "x", "X-Session-Token": code };
    const response = await fetchFrom(site.address().port, "GET", target, { headers });
    assert.equal(response.status, status, `${target}, ${code}`);
  }
  assert.match(log.text(), /another request has destroyed the session \(session_gone\): dropped the changes of "a"/);
});

test("objects that look like values of another language are tagged", () => {
  const php = { $cloakroom: { php: "aTo3Ow==" } };
  const stored = new Map([["kept", JSON.stringify(php)]]);
  const texts = tagged(snapshot({ kept: php, forged: php, plain: { a: "$cloakroom" } }), stored);
  assert.deepEqual(JSON.parse(texts.get("kept")), php);
  assert.deepEqual(JSON.parse(texts.get("forged")), { $cloakroom: { json: php } });
  assert.deepEqual(JSON.parse(texts.get("plain")), { a: "$cloakroom" });
  const users = tagged(snapshot({ user: { name: "ada", $cloakroom: 1 } }), new Map());
  assert.equal(userIn(users, "user.name"), "ada");
  const read = untagged({ forged: JSON.parse(texts.get("forged")), kept: php });
  assert.deepEqual({ ...read }, { forged: php, kept: php });
});

test("an API that does not listen is a 503", async () => {
  const api = new Api(readSettings({ url: "http://127.0.0.1:9/_session" }, {}));
  await assert.rejects(api.call("GET", "", "x"), { status: 503, code: "api_unreachable" });
});
