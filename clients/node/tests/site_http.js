"use strict";

/** A site on node:http for the tests of all clients: node site_http.js PORT */
const http = require("node:http");
const cloakroom = require("..");
const { apply, sleep, valuesOf } = require("./operations");

const routes = {
  "GET /untouched": async () => ({ ok: true }),
  "GET /read": async (req, res) => ({ values: valuesOf(await cloakroom.load(req, res)) }),
  "GET /get": async (req, res, { key }) => {
    const session = await cloakroom.load(req, res);
    const has = Object.hasOwn(session, key);
    return has ? { has, value: session[key] } : { has };
  },
  "GET /id": async (req, res) => ({ id: (await cloakroom.load(req, res)).id }),
  "GET /who": async (req, res) => {
    await cloakroom.load(req, res);
    return { principal: cloakroom.principal(req) };
  },
  "POST /change": async (req, res, query) => {
    const session = await cloakroom.load(req, res);
    const operations = await bodyOf(req);
    if (query.sleep) await sleep(Number(query.sleep));
    if (query.stream) res.writeHead(200, { "Content-Type": "application/json" }).write(" ");
    apply(session, operations);
    if (query.save)
      await new Promise((resolve, reject) => session.save((error) => (error ? reject(error) : resolve())));
    res.statusCode = Number(query.status ?? 200);
    return { ok: true };
  },
  "POST /login": async (req, res, { name }) => {
    await cloakroom.load(req, res);
    cloakroom.login(req, name);
    return { ok: true };
  },
  "POST /logout": async (req, res) => {
    await cloakroom.load(req, res);
    cloakroom.logout(req);
    return { ok: true };
  },
  "POST /regenerate": async (req, res) => {
    const values = { ...(await cloakroom.load(req, res)) };
    await new Promise((resolve) => req.session.regenerate(resolve));
    Object.assign(req.session, values);
    return { ok: true };
  },
  "POST /flush": async (req, res) => {
    await cloakroom.load(req, res);
    await new Promise((resolve) => req.session.regenerate(resolve));
    apply(req.session, await bodyOf(req));
    return { ok: true };
  },
};

async function bodyOf(req) {
  const chunks = [];
  for await (const chunk of req) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks).toString() || "[]");
}

const server = http.createServer(async (req, res) => {
  const url = new URL(req.url, "http://site");
  try {
    const body = await routes[`${req.method} ${url.pathname}`](req, res, Object.fromEntries(url.searchParams));
    if (!res.headersSent) res.setHeader("Content-Type", "application/json");
    res.end(JSON.stringify(body));
  } catch (error) {
    console.error(error.message);
    res.writeHead(error.status ?? 500).end();
  }
});
server.listen(Number(process.argv[2]), "127.0.0.1");
