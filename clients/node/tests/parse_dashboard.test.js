"use strict";

/** parse-dashboard, unmodified: express 5, express-session, passport, connect-flash and csrf-sync in one application. */
const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const test = require("node:test");
const { MODES, fetchFrom, freePort, start, startProgram, temporaryDirectory } = require("./harness");

// Its packages are many, so they are not among those of the other tests: npm install parse-dashboard@9.2.0
const MODULES = process.env.PARSE_DASHBOARD ?? "";
const skip = !MODULES && "$PARSE_DASHBOARD is not a directory with its node_modules";

/** Adds a row to docs/explanation/clients.md, if that is to be written. */
function addRow(row) {
  const file = process.env.CLIENT_ROWS;
  if (file) fs.appendFileSync(file, `${JSON.stringify({ table: "applications", ...row })}\n`);
}

for (const mode of MODES) {
  test(`parse-dashboard (${mode})`, { skip }, async (t) => {
    const [site, api] = [await freePort(), await freePort()];
    const program = await startProgram(t, { site, mode, api });
    const config = path.join(temporaryDirectory(t), "config.json");
    const app = { serverURL: "http://127.0.0.1:9/parse", appId: "a", masterKey: "m", appName: "A" };
    fs.writeFileSync(config, JSON.stringify({ apps: [app], users: [{ user: "ada", pass: "right" }] }));
    const main = path.join(MODULES, "node_modules/parse-dashboard/Parse-Dashboard/index.js");
    const flags = ["--require", path.join(__dirname, "../register.js")];
    const options = ["--config", config, "--host", "127.0.0.1", "--port", String(site), "--allowInsecureHTTP", "true"];
    const env = {
      ...process.env,
      CLOAKROOM_CLIENT_URL: `http://127.0.0.1:${api}/_session`,
      CLOAKROOM_CLIENT_SECRETS: mode === "headers" ? program.secret : "",
    };
    await start(t, site, process.execPath, [...flags, main, ...options], { env, cwd: MODULES });

    const visitor = program.visitor();
    const logIn = async (pass, token) => {
      const page = (await visitor.get("/login")).text;
      const csrf = token ?? /id="csrf" type="application\/json">"([^"]+)"/.exec(page)[1];
      return visitor.post("/login", { _csrf: csrf, username: "ada", password: pass });
    };
    const isLoggedIn = async () => (await visitor.get("/apps")).status === 200;

    assert.equal((await visitor.get("/apps")).status, 302);
    assert.equal((await logIn("right", "forged")).status, 403);
    assert.equal((await logIn("wrong")).headers.location, "/login");
    assert.match((await visitor.get("/login")).text, /Invalid username or password/);
    assert.doesNotMatch(
      (await visitor.get("/login")).text,
      /Invalid username or password/,
      "a flash message is shown once",
    );
    const planted = { ...visitor.jar };
    assert.equal((await logIn("right")).headers.location, "/apps");
    assert.deepEqual(Object.keys(visitor.jar), ["id"]);
    assert.notDeepEqual(visitor.jar, planted);
    assert.ok(await isLoggedIn());
    assert.deepEqual(
      (await program.sessions()).map((session) => session.principal),
      ["ada"],
    );
    assert.equal((await visitor.get("/logout")).headers.location, "/login");
    assert.equal(await isLoggedIn(), false);
    assert.deepEqual(
      (await program.sessions()).filter((session) => session.principal),
      [],
    );
    assert.equal((await fetchFrom(site, "GET", "/apps")).status, mode === "headers" ? 403 : 500);
    addRow({
      application: "parse-dashboard 9.2.0 (express 5, express-session, passport, connect-flash, csrf-sync)",
      how: `\`node --require cloakroom/register\`; ${mode === "api" ? "calls" : "header exchange"}`,
      clicked: "log-in with a forged token, a wrong and the right password, a flash message, log-out",
      result: "as expected",
    });
  });
}
