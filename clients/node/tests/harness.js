"use strict";

/** Runs sites of the tests, alone or behind the program. The program is $CLOAKROOM. */
const { spawn } = require("node:child_process");
const { once } = require("node:events");
const fs = require("node:fs");
const http = require("node:http");
const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const cloakroom = require("..");

const BINARY = process.env.CLOAKROOM ?? path.join(__dirname, "../../../target/debug/cloakroom");
const SECRET = "the-client-secret-of-the-tests-0123456789";
const SERVICE_TOKEN = "the-service-token-of-the-tests-0123456789";
const PATIENCE = 60_000; // ms; a machine that runs other tests, too, is slow
const MODES = ["api", "headers"];

// Below the ports of outgoing connections; each file of tests is a process of its own.
const FIRST_PORT = 10_000 + (process.pid % 100) * 220;
let count = 0;

async function freePort() {
  for (;;) {
    const port = FIRST_PORT + (count++ % 220);
    const server = net.createServer().listen(port, "127.0.0.1");
    const isFree = await once(server, "listening").then(
      () => true,
      () => false,
    );
    await new Promise((resolve) => server.close(resolve));
    if (isFree) return port;
  }
}

async function waitFor(port) {
  for (const since = Date.now(); Date.now() - since < PATIENCE;) {
    const socket = net.connect(port, "127.0.0.1");
    const isOpen = await once(socket, "connect").then(
      () => true,
      () => false,
    );
    socket.destroy();
    if (isOpen) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`nothing listens on port ${port}`);
}

/** Starts a process, and ends it after the test. */
async function start(t, port, command, args, options = {}) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
  child.log = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (child.log += text));
  t.after(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  });
  await Promise.race([waitFor(port), once(child, "exit").then(() => Promise.reject(new Error(child.log)))]);
  return child;
}

function temporaryDirectory(t) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), "cloakroom-node-"));
  t.after(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Starts the program in front of a site, with a store in memory. */
async function startProgram(t, { site, mode = "api", api, listen = "", apiAddress }) {
  const directory = temporaryDirectory(t);
  const [port, admin] = [await freePort(), await freePort()];
  const file = (name, text) => {
    fs.writeFileSync(path.join(directory, name), text, { mode: 0o600 });
    return path.join(directory, name);
  };
  const secret = file("client-secret", `${SECRET}\n`);
  const config = file(
    "cloakroom.toml",
    `
[[listen]]
address = "127.0.0.1:${port}"
${listen}
[admin]
address = "127.0.0.1:${admin}"
[api]
address = "${apiAddress ?? `127.0.0.1:${api}`}"
service_token = { file = "${file("service-token", SERVICE_TOKEN)}" }
client_secret = { file = "${secret}" }
[store]
url = "memory:"
[session]
keys = [{ file = "${file("key", `${Buffer.alloc(32, 7).toString("base64url")}\n`)}" }]
[cookie]
secure = false
name = "id"
[[route]]
upstream = "http://127.0.0.1:${site}"
header_exchange = ${mode === "headers" ? '"partial"' : "false"}
`,
  );
  const child = await start(t, port, BINARY, ["run", "--config", config]);
  const service = (method, suffix = "", body) =>
    fetchFrom(api, method, `/_sessions${suffix}`, { body, headers: { Authorization: `Bearer ${SERVICE_TOKEN}` } });
  return {
    child,
    port,
    secret,
    service,
    visitor: () => new Visitor(port),
    sessions: async () => (await service("GET")).json.sessions,
    only: async () => {
      const [{ id }] = (await service("GET")).json.sessions;
      return service("GET", `/${id}`);
    },
    calls: async () => {
      const lines =
        (await fetchFrom(admin, "GET", "/metrics")).text.match(/^cloakroom_api_requests_total\S* (\d+)/gm) ?? [];
      return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
    },
  };
}

/** Runs an application of this process behind the program: `build(middleware, load)` returns a request listener. */
async function startScene(t, mode, build, options = {}) {
  const [site, api] = [await freePort(), await freePort()];
  const program = await startProgram(t, { site, mode, api });
  const secrets = mode === "headers" ? [program.secret] : [];
  const sessions = cloakroom({ url: `http://127.0.0.1:${api}/_session`, secrets, ...options });
  const server = http.createServer(build(sessions)).listen(site, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return { ...program, site, api };
}

/** Collects what the client logs in this process. */
function captureLog(t) {
  const lines = [];
  for (const level of ["error", "warn"]) t.mock.method(console, level, (...args) => lines.push(args.join(" ")));
  return { text: () => lines.join("\n"), lines };
}

function fetchFrom(port, method, target, { body, headers = {}, onHead = () => {}, ...options } = {}) {
  return new Promise((resolve, reject) => {
    const content = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
    const type = content ? { "Content-Type": "application/json", "Content-Length": content.length } : {};
    const request = http.request({
      host: "127.0.0.1",
      port,
      method,
      path: target,
      agent: false,
      headers: { ...type, ...headers },
      ...options,
    });
    request.on("error", reject);
    request.on("response", (response) => {
      onHead();
      let text = "";
      response.setEncoding("utf8").on("data", (chunk) => (text += chunk));
      response.on("error", reject);
      response.on("end", () => {
        const found = { status: response.statusCode, headers: response.headers, text };
        Object.defineProperty(found, "json", { get: () => JSON.parse(text) });
        resolve(found);
      });
    });
    request.end(content);
  });
}

/** A browser with the cookies that it was given. */
class Visitor {
  constructor(port, jar = {}) {
    this.port = port;
    this.jar = { ...jar };
  }

  async send(method, target, { body, headers, ...options } = {}) {
    const cookie = Object.entries(this.jar)
      .map(([name, value]) => `${name}=${value}`)
      .join("; ");
    const response = await fetchFrom(this.port, method, target, {
      body,
      headers: { ...(cookie && { Cookie: cookie }), ...headers },
      ...options,
    });
    for (const line of response.headers["set-cookie"] ?? []) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
      if (/max-age=0/i.test(line)) delete this.jar[name];
      else this.jar[name] = value;
    }
    return response;
  }

  get(target, options) {
    return this.send("GET", target, options);
  }

  post(target, body, options) {
    return this.send("POST", target, { body, ...options });
  }
}

module.exports = {
  MODES, PATIENCE, SECRET, Visitor, captureLog, fetchFrom, freePort, start, startProgram, startScene, temporaryDirectory,
}; // prettier-ignore
