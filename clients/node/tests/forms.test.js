"use strict";

/** The package as it is installed: by preload, in ES modules, in Fastify, with its types. */
const assert = require("node:assert/strict");
const { execFileSync } = require("node:child_process");
const { createHmac } = require("node:crypto");
const fs = require("node:fs");
const http = require("node:http");
const { once } = require("node:events");
const path = require("node:path");
const test = require("node:test");
const Koa = require("koa");
const {
  MODES,
  PATIENCE,
  SECRET,
  captureLog,
  fetchFrom,
  freePort,
  start,
  startProgram,
  startScene,
  temporaryDirectory,
} = require("./harness");
const cloakroom = require("..");

const MODULES = (process.env.NODE_PATH ?? "").split(path.delimiter)[0];

/** Packs the package and installs it into a directory that has the packages of the tests, too. */
function install(t) {
  const directory = temporaryDirectory(t);
  const npm = (args, cwd) => execFileSync("npm", args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  const [{ filename, files }] = JSON.parse(
    npm(["pack", "--json", "--pack-destination", directory, path.dirname(__dirname)], directory),
  );
  fs.mkdirSync(path.join(directory, "node_modules"));
  for (const name of fs.readdirSync(MODULES))
    fs.symlinkSync(path.join(MODULES, name), path.join(directory, "node_modules", name));
  fs.mkdirSync(path.join(directory, "node_modules/cloakroom"));
  execFileSync("tar", [
    "-xzf",
    path.join(directory, filename),
    "--strip-components=1",
    "-C",
    path.join(directory, "node_modules/cloakroom"),
  ]);
  return { directory, files: files.map((file) => file.path) };
}

/** Waits until a process has logged something. */
async function logged(child, pattern) {
  for (const since = Date.now(); Date.now() - since < PATIENCE && !pattern.test(child.log);)
    await new Promise((resolve) => setTimeout(resolve, 20));
  assert.match(child.log, pattern);
}

/** Runs a file of a site, installed, behind the program. */
async function startSite(t, { directory }, name, text, { flags = [], mode = "api", settings = {} } = {}) {
  const [site, api] = [await freePort(), await freePort()];
  const program = await startProgram(t, { site, mode, api });
  fs.writeFileSync(path.join(directory, name), text);
  const env = {
    ...process.env,
    NODE_ENV: "production", // node --test sets another, in which Express logs nothing
    NODE_PATH: "",
    PORT: String(site),
    CLOAKROOM_CLIENT_URL: `http://127.0.0.1:${api}/_session`,
    CLOAKROOM_CLIENT_SECRETS: mode === "headers" ? program.secret : "",
    ...settings,
  };
  const child = await start(t, site, process.execPath, [...flags, name], { cwd: directory, env });
  return { ...program, site, child };
}

const UNMODIFIED = `
const app = express();
app.use(session({ secret: "s", resave: false, saveUninitialized: false, cookie: { maxAge: 3600000 } }));
app.get("/", (req, res) => {
  req.session.n = (req.session.n ?? 0) + 1;
  res.json({ n: req.session.n, id: req.sessionID });
});
app.listen(process.env.PORT, "127.0.0.1");
`;
const COMMONJS = `const express = require("express"); const session = require("express-session");${UNMODIFIED}`;
const MODULE = `import express from "express"; import session from "express-session";${UNMODIFIED}`;

for (const [name, text, flag] of [
  ["app.cjs", COMMONJS, "--require"],
  ["app.cjs", COMMONJS, "--import"],
  ["app.mjs", MODULE, "--require"],
  ["app.mjs", MODULE, "--import"],
]) {
  for (const mode of MODES) {
    test(`an unmodified site with ${flag} in ${name} (${mode})`, async (t) => {
      const scene = await startSite(t, install(t), name, text, { flags: [flag, "cloakroom/register"], mode });
      const visitor = scene.visitor();
      const first = await visitor.get("/");
      assert.deepEqual(Object.keys(visitor.jar), ["id"], "no cookie but that of the program");
      const [{ id }] = await scene.sessions();
      assert.deepEqual(
        [first.json, (await visitor.get("/")).json],
        [
          { n: 1, id },
          { n: 2, id },
        ],
      );
      // The lifetime that the site has set
      assert.deepEqual((await scene.only()).json.expiry, { idle: 3600 });
      const elsewhere = await fetchFrom(scene.site, "GET", "/");
      assert.equal(elsewhere.status, mode === "headers" ? 403 : 500);
      await logged(scene.child, /did not come through Cloakroom/);
      assert.equal(elsewhere.headers["set-cookie"], undefined);
      // The log of Express has the message, too.
      await logged(scene.child, /CloakroomError: this request did not come through Cloakroom/);
      assert.doesNotMatch(scene.child.log, /^ +at /m, "no stack trace");
    });
  }
}

test("Express 4", async (t) => {
  const text = COMMONJS.replace('"express"', '"express4"');
  const scene = await startSite(t, install(t), "app.cjs", text, { flags: ["--require", "cloakroom/register"] });
  const visitor = scene.visitor();
  for (const n of [1, 2]) assert.equal((await visitor.get("/")).json.n, n);
});

test("a fallback gives stock sessions to requests from elsewhere, and says so once", async (t) => {
  const settings = { CLOAKROOM_CLIENT_FALLBACK: "stock" };
  const installed = install(t);
  const middleware = `const express = require("express"); const session = () => require("cloakroom")();${UNMODIFIED}`;
  for (const [text, flags, cookie] of [
    [COMMONJS, ["--require", "cloakroom/register"], /connect.sid/],
    [middleware, [], /connect.sid/],
  ]) {
    const scene = await startSite(t, installed, "app.cjs", text, { flags, settings });
    const visitor = scene.visitor();
    for (const n of [1, 2]) assert.equal((await visitor.get("/")).json.n, n);
    let headers = {};
    for (const n of [1, 2]) {
      const response = await fetchFrom(scene.site, "GET", "/", { headers });
      assert.equal(response.json.n, n);
      if (n === 1) {
        assert.match(response.headers["set-cookie"][0], cookie);
        headers = { Cookie: response.headers["set-cookie"][0].split(";")[0] };
      }
    }
    await logged(scene.child, /for development/);
    assert.equal(scene.child.log.match(/cloakroom: .*for development/g).length, 1);
  }
});

test("with a secret, only requests without session headers or with a proof alone get stock sessions", async (t) => {
  const log = captureLog(t);
  const stock = (req, _res, next) => {
    req.session = { isStock: true };
    next();
  };
  const scene = await startScene(t, "headers", (sessions) => answering(sessions), { fallback: stock });
  assert.equal((await scene.visitor().get("/")).text, "{}", "of Cloakroom");
  const send = (headers) => fetchFrom(scene.site, "GET", "/", { headers });
  for (const headers of [{}, proven({})]) {
    const { status, text } = await send(headers);
    assert.deepEqual([status, text], [200, '{"isStock":true}'], Object.keys(headers).join());
  }
  const { "x-session-proof": proof } = proven({ "x-session-id": "x" });
  for (const headers of [
    { "x-session-id": "x" },
    { "x-session-proof": proof },
    { "x-session-id": "y", "x-session-proof": proof },
    { "x-session-token": "x" },
  ]) {
    assert.equal((await send(headers)).status, 403, Object.keys(headers).join());
  }
  assert.match(log.text(), /X-Session-Proof is missing or wrong: open the site at/);
});

test("a fallback without express-session says what is missing", async (t) => {
  const directory = temporaryDirectory(t);
  const site = await freePort();
  const text = `const { load } = require(${JSON.stringify(path.dirname(__dirname))});
    require("node:http").createServer((req, res) =>
      load(req, res).catch((error) => res.writeHead(error.status).end(error.stack)),
    ).listen(${site}, "127.0.0.1");`;
  fs.writeFileSync(path.join(directory, "app.cjs"), text);
  const env = { ...process.env, NODE_PATH: "", CLOAKROOM_CLIENT_FALLBACK: "stock" };
  await start(t, site, process.execPath, ["app.cjs"], { cwd: directory, env });
  const response = await fetchFrom(site, "GET", "/");
  assert.equal(response.status, 500);
  assert.match(response.text, /^CloakroomError: CLOAKROOM_CLIENT_FALLBACK=stock needs the package express-session.*$/);
});

test("header exchange without a secret is reported once", async (t) => {
  const log = captureLog(t);
  const site = await freePort();
  const api = await freePort();
  const server = http.createServer(answering(cloakroom({ url: `http://127.0.0.1:${api}/_session` })));
  server.listen(site, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close() && server.closeAllConnections());
  const program = await startProgram(t, { site, api, mode: "headers" });
  for (let i = 0; i < 2; i += 1) assert.equal((await program.visitor().get("/")).text, "{}");
  assert.deepEqual(log.lines, [
    "cloakroom: header exchange is on, but the client has no secret: X-Session-Data is not used; set CLOAKROOM_CLIENT_SECRETS",
  ]);
});

/** Returns a listener that responds with the session. */
function answering(sessions) {
  return (req, res) =>
    sessions(req, res, (error) =>
      res.writeHead(error?.status ?? 200).end(error?.message ?? JSON.stringify(req.session)),
    );
}

/** Returns headers with their proof. */
function proven(headers) {
  const now = Math.floor(Date.now() / 1000);
  const lines = Object.entries(headers).map(([name, value]) => `${name}:${value}`);
  const text = ["cloakroom-proof-v1", now, ...lines].join("\n");
  const mac = createHmac("sha256", SECRET).update(text).digest("base64url");
  return { ...headers, "x-session-proof": `v1 t=${now} m=${mac}` };
}

test("two loads of one request give one session", async (t) => {
  const [site, api] = [await freePort(), await freePort()];
  const sessions = cloakroom({ url: `http://127.0.0.1:${api}/_session` });
  const server = http.createServer(async (req, res) => {
    const [one, other] = await Promise.all([sessions.load(req, res), sessions.load(req, res)]);
    one.n = (one.n ?? 0) + 1;
    res.end(JSON.stringify([one.n, one === other, req.session === one]));
  });
  server.listen(site, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close() && server.closeAllConnections());
  const program = await startProgram(t, { site, api });
  const visitor = program.visitor();
  for (const n of [1, 2]) assert.deepEqual((await visitor.get("/")).json, [n, true, true]);
});

test("ids and the principal in headers are not believed without a secret", async (t) => {
  const api = http.createServer((_req, res) =>
    res.end('{"id": null, "next_id": "of the API", "principal": null, "values": {}}'),
  );
  api.listen(0, "127.0.0.1");
  await once(api, "listening");
  t.after(() => api.close() && api.closeAllConnections());
  const url = `http://127.0.0.1:${api.address().port}/_session`;
  const sessions = cloakroom({ url });
  const server = http.createServer((req, res) =>
    sessions(req, res, () => res.end(JSON.stringify([req.session.id, cloakroom.principal(req)]))),
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close() && server.closeAllConnections());
  const forged = { "X-Session-Url": url, "X-Session-Token": "x", "X-Session-Principal": "root" };
  for (const name of ["X-Session-Id", "X-Session-Next-Id"]) {
    const headers = { ...forged, [name]: "forged" };
    const response = await fetchFrom(server.address().port, "GET", "/", { headers });
    assert.deepEqual(response.json, ["of the API", null], name);
  }
});

test("a bundled express-session is reported", async (t) => {
  const text = `require("node:http").createServer((req, res) => res.end("ok")).listen(process.env.PORT, "127.0.0.1");`;
  const scene = await startSite(t, install(t), "app.cjs", text, { flags: ["--require", "cloakroom/register"] });
  for (let i = 0; i < 2; i += 1) await scene.visitor().get("/");
  await logged(scene.child, /express-session is/);
  assert.equal(scene.child.log.match(/express-session is not a module of this site/g).length, 1);
});

test("the package has what it needs", (t) => {
  const { files } = install(t);
  for (const file of [
    "LICENSE",
    "README.md",
    "index.d.mts",
    "index.d.ts",
    "express.d.ts",
    "index.js",
    "index.mjs",
    "register.js",
    "lib/api.js",
  ]) {
    assert.ok(files.includes(file), file);
  }
  assert.ok(!files.some((file) => file.startsWith("tests/")));
  const manifest = require("../package.json");
  assert.equal(manifest.dependencies, undefined);
});

test("the types compile", (t) => {
  const { directory } = install(t);
  const write = (name, text) => fs.writeFileSync(path.join(directory, name), text);
  const use = `
import "cloakroom/express";
import type {} from "node:http";
const app = express();
app.use(cloakroom({ principal: (values) => values.user?.name, cookie: { maxAge: 1 } }));
app.get("/", (req, res) => {
  req.session.n = 1;
  const left: number | null | undefined = req.session.cookie.maxAge;
  req.session.regenerate((error) => { req.session.touch().save(); });
  cloakroom.login(req, "ada");
  const name: string | null = cloakroom.principal(req);
  res.json({ left, name, id: req.sessionID });
});
// @ts-expect-error
cloakroom({ unset: "other" });
`;
  write("app.cts", `import express = require("express"); import cloakroom = require("cloakroom");${use}`);
  write(
    "app.mts",
    `import express from "express"; import cloakroom, { load, login } from "cloakroom";${use}
async function plain(req: import("node:http").IncomingMessage, res: import("node:http").ServerResponse) {
  const session = await load(req, res);
  session.n = 1;
  login(req, "ada");
}`,
  );
  write(
    "tsconfig.json",
    JSON.stringify({
      compilerOptions: {
        module: "nodenext",
        moduleResolution: "nodenext",
        target: "es2022",
        strict: true,
        noEmit: true,
        skipLibCheck: true,
        types: ["node"],
        typeRoots: [path.join(MODULES, "@types")],
        preserveSymlinks: true,
      },
      files: ["app.cts", "app.mts"],
    }),
  );
  try {
    execFileSync(path.join(MODULES, ".bin/tsc"), ["-p", "."], { cwd: directory, encoding: "utf8" });
  } catch (error) {
    assert.fail(error.stdout);
  }
});

for (const mode of MODES) {
  test(`node:http (${mode})`, async (t) => {
    const log = captureLog(t);
    const scene = await startScene(t, mode, (sessions) => async (req, res) => {
      try {
        if (req.url === "/health") return res.end("ok");
        const session = await sessions.load(req, res);
        if (req.url === "/login") cloakroom.login(req, "ada");
        if (req.url === "/logout") cloakroom.logout(req);
        if (req.url === "/big") session.big = "x".repeat(1_100_000);
        session.n = (session.n ?? 0) + 1;
        res.end(JSON.stringify({ n: session.n, principal: cloakroom.principal(req) }));
      } catch (error) {
        res.writeHead(error.status ?? 500).end(error.message);
      }
    });
    const visitor = scene.visitor();
    assert.deepEqual((await visitor.get("/")).json, { n: 1, principal: null });
    assert.deepEqual((await visitor.get("/login")).json, { n: 2, principal: "ada" });
    assert.deepEqual((await visitor.get("/")).json, { n: 3, principal: "ada" });
    assert.deepEqual((await visitor.get("/logout")).json, { n: 4, principal: null });
    assert.deepEqual((await visitor.get("/")).json, { n: 5, principal: null });
    const big = await visitor.get("/big");
    assert.deepEqual([big.status, big.text], [500, "Internal Server Error\n"]);
    assert.match(log.text(), /"big" \(1100002 bytes\)/);
    assert.deepEqual((await visitor.get("/")).json, { n: 6, principal: null });
    assert.equal((await fetchFrom(scene.site, "GET", "/health")).text, "ok");
    assert.equal((await fetchFrom(scene.site, "GET", "/")).status, mode === "headers" ? 403 : 500);
  });

  test(`Koa (${mode})`, async (t) => {
    const scene = await startScene(t, mode, ({ load }) => {
      const app = new Koa();
      app.silent = true;
      app.use(async (ctx, next) => {
        await load(ctx.req, ctx.res);
        await next();
      });
      app.use((ctx) => {
        ctx.req.session.n = (ctx.req.session.n ?? 0) + 1;
        ctx.body = { n: ctx.req.session.n };
      });
      return app.callback();
    });
    const visitor = scene.visitor();
    for (const n of [1, 2]) assert.deepEqual((await visitor.get("/")).json, { n });
    assert.equal((await fetchFrom(scene.site, "GET", "/")).status, mode === "headers" ? 403 : 500);
  });

  test(`Fastify (${mode})`, async (t) => {
    const scene = await startSite(t, install(t), "app.mjs", guideBlock("fastify("), { mode });
    const visitor = scene.visitor();
    for (const visits of [1, 2]) assert.deepEqual((await visitor.get("/")).json, { visits, user: null });
    await visitor.send("POST", "/login?name=ada");
    assert.deepEqual((await visitor.get("/")).json, { visits: 3, user: "ada" });
    assert.equal((await fetchFrom(scene.site, "GET", "/")).status, mode === "headers" ? 403 : 500);
  });

  test(`the site of the guide (${mode})`, async (t) => {
    const scene = await startSite(t, install(t), "app.mjs", guideBlock("import express"), { mode });
    const visitor = scene.visitor();
    assert.equal((await visitor.get("/")).text, "Hello stranger, visit 1\n");
    await visitor.send("POST", "/login?name=Ada");
    assert.equal((await visitor.get("/")).text, "Hello Ada, visit 2\n");
    assert.deepEqual(
      (await scene.sessions()).map((session) => session.principal),
      ["Ada"],
    );
    await visitor.send("POST", "/logout");
    assert.equal((await visitor.get("/")).text, "Hello stranger, visit 1\n");
  });

  test(`the plain site of the guide (${mode})`, async (t) => {
    const scene = await startSite(t, install(t), "app.mjs", guideBlock("createServer"), { mode });
    const visitor = scene.visitor();
    for (const visits of [1, 2]) assert.equal((await visitor.get("/")).text, `Visit ${visits}\n`);
    assert.equal((await fetchFrom(scene.site, "GET", "/")).status, mode === "headers" ? 403 : 500);
  });
}

/** Returns the block of the guide that has a text. */
function guideBlock(part) {
  const guide = fs.readFileSync(path.join(__dirname, "../../../docs/guides/express.md"), "utf8");
  const blocks = [...guide.matchAll(/```js\n([^`]*(?:`[^`]+`[^`]*)*?)```/g)].map(([, block]) => block);
  const found = blocks.find((block) => block.includes(part));
  assert.ok(found, `no block with ${part}`);
  return found.replace(/3000/, "process.env.PORT");
}

test("the API on a Unix socket", async (t) => {
  const site = await freePort();
  const socket = path.join(temporaryDirectory(t), "api socket");
  const url = `http+unix://${encodeURIComponent(socket)}/_session`;
  const sessions = cloakroom({ url });
  const server = http
    .createServer((req, res) =>
      sessions(req, res, (error) => {
        if (error) return res.writeHead(error.status).end(error.message);
        req.session.n = (req.session.n ?? 0) + 1;
        res.end(String(req.session.n));
      }),
    )
    .listen(site, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close() && server.closeAllConnections());
  const program = await startProgram(t, { site, apiAddress: `unix:${socket}` });
  const visitor = program.visitor();
  for (const n of ["1", "2"]) assert.equal((await visitor.get("/")).text, n);
});

test("values in headers count on a Unix socket of the site, or if the network is trusted", async (t) => {
  const listener = (options) => {
    const sessions = cloakroom({ url: "http://127.0.0.1:9/_session", ...options });
    return http.createServer((req, res) =>
      sessions(req, res, (error) => {
        res.writeHead(error?.status ?? 200).end(JSON.stringify(error ? {} : req.session));
      }),
    );
  };
  const headers = {
    "X-Session-Url": "http://127.0.0.1:9/_session", "X-Session-Token": "x", "X-Session-Id": "x", "X-Session-Data": '{"a":1}',
  }; // prettier-ignore
  const socketPath = path.join(temporaryDirectory(t), "site");
  for (const [options, address, status] of [
    [{}, { socketPath }, 200],
    [{}, undefined, 503], // asks the API
    [{ trust: "network" }, undefined, 200],
  ]) {
    const server = listener(options).listen(address?.socketPath ?? { host: "127.0.0.1", port: 0 });
    await once(server, "listening");
    const where = address ?? { port: server.address().port };
    const response = await fetchFrom(where.port, "GET", "/", { headers, ...where });
    assert.equal(response.status, status);
    if (status === 200) assert.deepEqual(response.json, { a: 1 });
    server.close();
    server.closeAllConnections();
  }
});
