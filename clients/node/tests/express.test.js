"use strict";

/** What goes wrong with sessions in Express, behind the program; each with calls of the API and with header exchange. */
const assert = require("node:assert/strict");
const http = require("node:http");
const { PassThrough } = require("node:stream");
const test = require("node:test");
const compression = require("compression");
const flash = require("connect-flash");
const csurf = require("csurf");
const express = require("express");
const { Passport } = require("passport");
const { Strategy } = require("passport-local");
const cloakroom = require("..");
const { MODES, PATIENCE, captureLog, fetchFrom, startScene } = require("./harness");

function inBothModes(name, check) {
  for (const mode of MODES) test(`${name} (${mode})`, (t) => check(t, mode));
}

/** Returns an Express application with these routes. */
function appOf(routes) {
  return (sessions) => {
    const app = express();
    app.set("env", "test"); // no log of errors
    app.use(sessions, express.json({ limit: "10mb" }));
    routes(app);
    return app;
  };
}

function passportApp(routes = () => {}) {
  return appOf((app) => {
    const passport = new Passport();
    const fields = { usernameField: "name", passwordField: "password" };
    passport.use(
      new Strategy(fields, (username, password, done) => {
        const user = password === "right" && { id: 17, username };
        done(null, user, { message: "wrong password" });
      }),
    );
    passport.serializeUser((user, done) => done(null, `${user.id}:${user.username}`));
    passport.deserializeUser((text, done) => done(null, { id: 17, username: text.split(":")[1] }));
    app.use(passport.initialize(), passport.session(), flash());
    app.post(
      "/login",
      passport.authenticate("local", { successRedirect: "/", failureRedirect: "/login", failureFlash: true }),
    );
    app.post("/keep", passport.authenticate("local", { keepSessionInfo: true }), (req, res) =>
      res.json({ id: req.session.id ?? null }),
    );
    app.post("/logout", (req, res, next) => req.logout((error) => (error ? next(error) : res.redirect("/"))));
    app.post("/leave", (req, res, next) =>
      req.logout({ keepSessionInfo: true }, (error) => (error ? next(error) : res.json({}))),
    );
    app.get("/login", (req, res) => res.json(req.flash("error")));
    app.get("/", (req, res) => res.json({ user: req.user?.username ?? null, values: { ...req.session } }));
    app.post("/set", (req, res) => res.json(Object.assign(req.session, req.body)));
    routes(app);
  });
}

const RIGHT = { name: "ada", password: "right" };

inBothModes("passport logs in by one patch", async (t, mode) => {
  const scene = await startScene(t, mode, passportApp());
  const visitor = scene.visitor();
  await visitor.post("/set", { cart: [1] });
  const [{ id, created_at: created }] = await scene.sessions();
  const before = await scene.calls();
  const response = await visitor.post("/keep", RIGHT);
  assert.equal(response.status, 200);
  assert.equal((await scene.calls()) - before, { api: 2, headers: 0 }[mode], "one read and one write");
  const [session] = await scene.sessions();
  assert.equal(session.principal, "ada");
  assert.notEqual(session.id, id);
  assert.equal(session.created_at, created, "it is the same session");
  const page = (await visitor.get("/")).json;
  assert.deepEqual(page, { user: "ada", values: { cart: [1], passport: { user: "17:ada" } } });
});

inBothModes("passport's log-in drops the values if it is told nothing else", async (t, mode) => {
  const scene = await startScene(t, mode, passportApp());
  const visitor = scene.visitor();
  await visitor.post("/set", { cart: [1] });
  const planted = { ...visitor.jar };
  const response = await visitor.post("/login", RIGHT);
  assert.equal(response.headers.location, "/");
  assert.notDeepEqual(visitor.jar, planted);
  assert.deepEqual((await visitor.get("/")).json, { user: "ada", values: { passport: { user: "17:ada" } } });
  // Again as the same user, who stays logged in.
  await visitor.post("/login", RIGHT);
  assert.deepEqual(
    (await scene.sessions()).map((session) => session.principal),
    ["ada"],
  );
  await visitor.post("/login", { name: "bob", password: "right" });
  assert.deepEqual(
    (await scene.sessions()).map((session) => session.principal),
    ["bob"],
  );
  assert.equal((await visitor.get("/")).json.user, "bob");
});

inBothModes("passport logs out by one patch", async (t, mode) => {
  const scene = await startScene(t, mode, passportApp());
  const visitor = scene.visitor();
  for (const [target, sessions, values] of [
    ["/logout", [], {}],
    ["/leave", [null], { cart: [1], passport: {} }],
  ]) {
    await visitor.post("/login", RIGHT);
    await visitor.post("/set", { cart: [1] });
    const before = await scene.calls();
    await visitor.post(target);
    assert.equal((await scene.calls()) - before, { api: 2, headers: 0 }[mode]);
    assert.deepEqual(
      (await scene.sessions()).map((session) => session.principal),
      sessions,
    );
    assert.deepEqual((await visitor.get("/")).json, { user: null, values });
  }
});

inBothModes("a failed log-in shows its message once", async (t, mode) => {
  const scene = await startScene(t, mode, passportApp());
  const visitor = scene.visitor();
  await visitor.post("/login", { name: "ada", password: "wrong" });
  assert.deepEqual(
    (await scene.sessions()).map((session) => session.principal),
    [null],
  );
  assert.deepEqual((await visitor.get("/login")).json, ["wrong password"]);
  assert.deepEqual((await visitor.get("/login")).json, []);
});

inBothModes("a user without a name is logged in without a principal, and the log says so", async (t, mode) => {
  const log = captureLog(t);
  const scene = await startScene(
    t,
    mode,
    passportApp((app) => {
      app.post("/nameless", (req, res, next) => req.login({ id: 1 }, (error) => (error ? next(error) : res.json({}))));
    }),
  );
  const visitor = scene.visitor();
  for (let i = 0; i < 2; i += 1) assert.equal((await visitor.post("/nameless")).status, 200);
  assert.deepEqual(
    (await scene.sessions()).map((session) => session.principal),
    [null],
  );
  assert.equal(log.lines.length, 1);
  assert.match(log.text(), /req.user has no username; set CLOAKROOM_CLIENT_PRINCIPAL/);
});

inBothModes("the principal is at a path of the values", async (t, mode) => {
  const build = appOf((app) => {
    app.post("/login", (req, res, next) => {
      req.session.regenerate((error) => {
        if (error) return next(error);
        req.session.user = { name: req.body.name };
        req.session.save((failed) => (failed ? next(failed) : res.redirect("/")));
      });
    });
    app.post("/rename", (req, res) => {
      req.session.color = "blue";
      res.json({});
    });
    app.post("/logout", (req, res) => {
      req.session.user = null;
      res.json({});
    });
  });
  for (const principal of ["user.name", (values) => values.user?.name]) {
    const scene = await startScene(t, mode, build, { principal });
    const visitor = scene.visitor();
    await visitor.post("/login", { name: "ada" });
    await visitor.post("/rename");
    assert.deepEqual(
      (await scene.sessions()).map((session) => session.principal),
      ["ada"],
    );
    await visitor.post("/login", { name: "Zoë" });
    assert.deepEqual(
      (await scene.sessions()).map((session) => session.principal),
      ["Zoë"],
    );
    await visitor.post("/logout");
    assert.deepEqual(
      (await scene.sessions()).map((session) => session.principal),
      [null],
    );
  }
});

inBothModes("visitors who only look get no session", async (t, mode) => {
  const scene = await startScene(t, mode, passportApp());
  const visitor = scene.visitor();
  for (const target of ["/", "/login", "/nowhere"]) await visitor.get(target); // `/login` writes `flash = {}`
  await visitor.post("/logout");
  assert.deepEqual(visitor.jar, {});
  assert.deepEqual(await scene.sessions(), []);
});

inBothModes("csurf finds its secret again", async (t, mode) => {
  const scene = await startScene(
    t,
    mode,
    appOf((app) => {
      app.use(csurf());
      app.get("/form", (req, res) => res.json({ token: req.csrfToken() }));
      app.post("/form", (_req, res) => res.json({ ok: true }));
      app.use((error, _req, res, _next) => res.status(error.status).json({ code: error.code }));
    }),
  );
  const visitor = scene.visitor();
  const { token } = (await visitor.get("/form")).json;
  assert.equal((await visitor.post("/form", {}, { headers: { "CSRF-Token": token } })).status, 200);
  assert.equal((await visitor.post("/form", {}, { headers: { "CSRF-Token": "wrong" } })).status, 403);
  assert.equal((await scene.visitor().post("/form", {}, { headers: { "CSRF-Token": token } })).status, 403);
});

inBothModes("a redirect leaves after the write", async (t, mode) => {
  const scene = await startScene(
    t,
    mode,
    passportApp((app) => {
      app.post("/say", (req, res) => {
        req.flash("error", "Zoë saß \u{1f600}\u007f");
        res.redirect("/login");
      });
    }),
  );
  const visitor = scene.visitor();
  for (let i = 0; i < 20; i += 1) {
    await visitor.post("/say");
    assert.deepEqual((await visitor.get("/login")).json, ["Zoë saß \u{1f600}\u007f"]);
  }
});

inBothModes("an error page keeps what was changed", async (t, mode) => {
  const scene = await startScene(
    t,
    mode,
    appOf((app) => {
      app.get("/fail", (req) => {
        req.session.failures = (req.session.failures ?? 0) + 1;
        throw new Error("of the site");
      });
      app.get("/", (req, res) => res.json({ ...req.session }));
    }),
  );
  const visitor = scene.visitor();
  for (let i = 0; i < 2; i += 1) assert.equal((await visitor.get("/fail")).status, 500);
  assert.deepEqual((await visitor.get("/")).json, { failures: 2 });
});

inBothModes("a stream writes at its end", async (t, mode) => {
  const log = captureLog(t);
  let proceed;
  const onHead = () => proceed();
  const scene = await startScene(
    t,
    mode,
    appOf((app) => {
      app.get("/stream", (req, res) => {
        if (req.query.id) res.setHeader("X-Id", req.session.id);
        proceed = () => {
          req.session.streamed = (req.session.streamed ?? 0) + 1;
          res.end("last");
        };
        res.write("first ");
      });
      app.get("/", (req, res) => res.json({ ...req.session }));
    }),
  );
  // The cookie of a new session has to leave with the head.
  const late = scene.visitor();
  assert.equal((await late.get("/stream", { onHead })).text, "first last");
  assert.deepEqual(await scene.sessions(), []);
  assert.match(log.text(), /changes after the head of the response are lost.*read req.session.id/);
  const visitor = scene.visitor();
  for (let i = 0; i < 2; i += 1) assert.equal((await visitor.get("/stream?id=1", { onHead })).text, "first last");
  assert.deepEqual((await visitor.get("/")).json, { streamed: 2 });
});

inBothModes("what is changed while the head is held is written", async (t, mode) => {
  const scene = await startScene(
    t,
    mode,
    appOf((app) => {
      app.get("/stream", (req, res) => {
        req.session.long = "x".repeat(70_000); // by a call in both modes
        res.write("first ");
        // Before the response of that call can be read.
        setImmediate(() => {
          req.session.streamed = 1;
          if (req.query.write) res.write("second ");
          res.end("last");
        });
      });
      app.get("/", (req, res) => res.json({ streamed: req.session.streamed }));
    }),
  );
  for (const [target, text] of [
    ["/stream", "first last"],
    ["/stream?write=1", "first second last"],
  ]) {
    const visitor = scene.visitor();
    assert.equal((await visitor.get(target)).text, text);
    assert.deepEqual((await visitor.get("/")).json, { streamed: 1 });
  }
});

inBothModes("a stream that the visitor leaves is written", async (t, mode) => {
  const scene = await startScene(
    t,
    mode,
    appOf((app) => {
      app.get("/", (req, res) => res.json(Object.assign(req.session, { started: true })));
      app.get("/events", (req, res) => {
        res.writeHead(200, { "Content-Type": "text/event-stream" }).write("data: 1\n\n");
        req.session.events = 1;
      });
    }),
  );
  const visitor = scene.visitor();
  await visitor.get("/");
  const cookie = `id=${visitor.jar.id}`;
  await new Promise((resolve, reject) => {
    const request = http
      .get({ port: scene.port, path: "/events", headers: { Cookie: cookie }, agent: false }, (response) => {
        response.once("data", () => resolve(request.destroy()));
      })
      .on("error", reject);
  });
  for (const since = Date.now(); Date.now() - since < PATIENCE && !(await visitor.get("/")).json.events;)
    await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal((await visitor.get("/")).json.events, 1);
});

inBothModes("a large patch and large values are written", async (t, mode) => {
  const scene = await startScene(t, mode, passportApp());
  const visitor = scene.visitor();
  const long = "ë".repeat(200_000);
  await visitor.post("/set", { long, n: 1 });
  await visitor.post("/set", { n: 2 });
  assert.deepEqual((await visitor.get("/")).json.values, { long, n: 2 });
});

inBothModes("errors of the site name the value", async (t, mode) => {
  const errors = [];
  const scene = await startScene(
    t,
    mode,
    appOf((app) => {
      app.get("/big", (req, res) => {
        req.session["too long"] = "x".repeat(1_100_000);
        res.json({ ok: true });
      });
      app.get("/save", (req, res, next) => {
        req.session["too long"] = "x".repeat(1_100_000);
        req.session.save(next);
      });
      app.get("/quiet", (req, res) => {
        req.session["too long"] = "x".repeat(1_100_000);
        req.session.save();
        res.json({ ok: true });
      });
      app.get("/bigint", (req, res) => {
        req.session.number = 1n;
        res.type("html").set("ETag", '"of the page"').send("<p>".repeat(1000));
      });
      app.use((error, _req, res, _next) => {
        errors.push(error.message);
        res.status(error.status ?? 500).json({ title: "of the site" });
      });
    }),
  );
  captureLog(t);
  for (const target of ["/big", "/save", "/quiet", "/bigint"]) {
    const response = await scene.visitor().get(target);
    assert.deepEqual([response.status, response.text], [500, '{"title":"of the site"}'], target);
    assert.match(response.headers["content-type"], /^application\/json/);
    assert.notEqual(response.headers.etag, '"of the page"');
  }
  assert.match(errors[0], /session_too_large.*"too long" \(1100002 bytes\); the limit is \[session\] max_bytes/);
  assert.match(errors[1], /"too long"/);
  assert.match(errors[2], /"too long"/);
  assert.match(errors[3], /"number" is not JSON/);
});

inBothModes("a page that fails to be written is a 503 once", async (t, mode) => {
  captureLog(t);
  const scene = await startScene(
    t,
    mode,
    appOf((app) => {
      app.get("/", (req, res) => {
        req.session.text = "x".repeat(100_000); // by a call in both modes
        scene.child.kill("SIGKILL");
        scene.child.once("exit", () => res.send("stored"));
      });
    }),
    { trust: "network" }, // or the token, which is made up, would be checked first
  );
  const headers = await headersOfRequest(scene, mode);
  const response = await fetchFrom(scene.site, "GET", "/", { headers });
  assert.equal(response.status, 503);
  assert.doesNotMatch(response.text, /stored/);
});

/** Returns the headers that the program sends to a site. */
async function headersOfRequest(scene, mode) {
  const { createHmac } = require("node:crypto");
  const fs = require("node:fs");
  const values = {
    url: `http://127.0.0.1:${scene.api}/_session`,
    token: "x",
    ...(mode === "headers" ? { data: "{}" } : {}),
  };
  const now = Math.floor(Date.now() / 1000);
  const lines = Object.entries(values).map(([name, value]) => `x-session-${name}:${value}`);
  const secret = fs.readFileSync(scene.secret, "utf8").trim();
  const mac = createHmac("sha256", secret)
    .update(["cloakroom-proof-v1", now, ...lines].join("\n"))
    .digest("base64url");
  const headers = Object.entries({ ...values, proof: `v1 t=${now} m=${mac}` }).map(([name, value]) => [
    `x-session-${name}`,
    value,
  ]);
  return Object.fromEntries(headers);
}

inBothModes("a response that is held behaves like one that was sent", async (t, mode) => {
  const seen = [];
  const scene = await startScene(
    t,
    mode,
    appOf((app) => {
      app.get("/twice", (req, res) => {
        req.session.text = "x".repeat(100_000);
        res.send("first");
        seen.push(res.headersSent, res.writableEnded);
        try {
          res.status(500).send("a second response, which is longer");
        } catch (error) {
          seen.push(error.code);
        }
      });
      app.get("/pipe", (req, res) => {
        req.session.text = `${"x".repeat(100_000)}${Math.random()}`;
        res.setHeader("Content-Length", 1_000_000);
        const source = new PassThrough();
        source.pipe(res);
        for (let i = 0; i < 100; i += 1) source.write("y".repeat(10_000));
        source.end();
      });
      app.get("/head", (req, res) => {
        req.session.text = `${"x".repeat(100_000)}${Math.random()}`;
        res.writeHead(201, "Made", { "X-One": "1", "Content-Type": "text/plain" });
        res.flushHeaders();
        res.write("a", () => seen.push("written"));
        res.end("b", "utf8", () => seen.push("ended"));
      });
    }),
  );
  const visitor = scene.visitor();
  const twice = await visitor.get("/twice");
  assert.deepEqual([twice.status, twice.text], [200, "first"]);
  assert.deepEqual(seen.splice(0), [true, true, "ERR_HTTP_HEADERS_SENT"]);
  assert.equal((await visitor.get("/pipe")).text, "y".repeat(1_000_000));
  const head = await visitor.get("/head");
  assert.deepEqual([head.status, head.headers["x-one"], head.text], [201, "1", "ab"]);
  assert.deepEqual(seen, ["written", "ended"]);
});

inBothModes("middleware around the response still works", async (t, mode) => {
  const onHeaders = require("on-headers");
  const scene = await startScene(t, mode, (sessions) => {
    const app = express();
    app.use((_req, res, next) => {
      onHeaders(res, () => res.setHeader("X-Before", "1"));
      next();
    });
    app.use(sessions);
    app.use((_req, res, next) => {
      onHeaders(res, () => res.setHeader("X-After", "1"));
      next();
    });
    app.get("/", (req, res) => {
      req.session.n = (req.session.n ?? 0) + 1;
      res.json(req.session.n);
    });
    return app;
  });
  const visitor = scene.visitor();
  for (const n of [1, 2]) {
    const { json, headers } = await visitor.get("/");
    assert.equal(json, n);
    assert.deepEqual([headers["x-before"], headers["x-after"], headers["content-length"]], ["1", "1", "1"]);
  }
});

for (const place of ["before", "after"]) {
  inBothModes(`a response is compressed by middleware ${place} the sessions`, async (t, mode) => {
    const scene = await startScene(t, mode, (sessions) => {
      const app = express();
      app.use(
        ...(place === "before" ? [compression({ threshold: 0 }), sessions] : [sessions, compression({ threshold: 0 })]),
      );
      app.get("/", (req, res) => {
        req.session.n = (req.session.n ?? 0) + 1;
        req.session.long = `${req.session.n}`.repeat(100_000);
        res.send("page ".repeat(1000));
      });
      return app;
    });
    const visitor = scene.visitor();
    assert.equal((await visitor.get("/")).text, "page ".repeat(1000));
    const { status, headers } = await visitor.get("/", { headers: { "Accept-Encoding": "gzip" } });
    assert.deepEqual([status, headers["content-encoding"]], [200, "gzip"]);
    assert.equal((await scene.only()).json.values.n, 2);
  });
}

inBothModes("values of other sites stay as they are", async (t, mode) => {
  const scene = await startScene(
    t,
    mode,
    passportApp((app) => {
      app.get("/types", (req, res) => res.json({ save: typeof req.session.save, id: typeof req.session.id }));
    }),
  );
  const visitor = scene.visitor();
  await visitor.post("/set", { a: 1 });
  const [{ id }] = await scene.sessions();
  // A number that JavaScript cannot hold, names of express-session's own, and a PHP object.
  const set = { save: 1, id: "x", cookie: {}, php: { $cloakroom: { php: "YToxOnt9" } } };
  await scene.service("PATCH", `/${id}`, { set });
  const big = '{"set": {"big": 9223372036854775807, "list": [9223372036854775807]}}';
  await new Promise((resolve, reject) => {
    const headers = { Authorization: "Bearer the-service-token-of-the-tests-0123456789" };
    const options = { port: scene.api, method: "PATCH", path: `/_sessions/${id}`, headers };
    http
      .request(options, (response) => response.resume().on("end", resolve))
      .on("error", reject)
      .end(big);
  });
  await visitor.post("/set", { a: 2 });
  assert.deepEqual((await visitor.get("/types")).json, { save: "function", id: "string" });
  const { text, json } = await scene.only();
  assert.match(text, /"big": ?9223372036854775807/);
  assert.match(text, /"list": ?\[9223372036854775807\]/);
  assert.deepEqual({ ...json.values, big: 0, list: 0 }, { ...set, a: 2, big: 0, list: 0 });
});

inBothModes("a key can be __proto__ in a session", async (t, mode) => {
  const scene = await startScene(
    t,
    mode,
    appOf((app) => {
      app.get("/", (req, res) => {
        Object.defineProperty(req.session, "__proto__", {
          value: { polluted: 1 },
          enumerable: true,
          configurable: true,
        });
        res.json({
          polluted: {}.polluted === 1,
          own: Object.hasOwn(req.session, "__proto__"),
          save: typeof req.session.save,
        });
      });
      app.get("/read", (req, res) =>
        res.json({ own: Object.hasOwn(req.session, "__proto__"), save: typeof req.session.save }),
      );
    }),
  );
  const visitor = scene.visitor();
  assert.deepEqual((await visitor.get("/")).json, { polluted: false, own: true, save: "function" });
  assert.deepEqual((await visitor.get("/read")).json, { own: true, save: "function" });
});

inBothModes("text with halves of surrogate pairs is stored", async (t, mode) => {
  const scene = await startScene(t, mode, passportApp());
  const visitor = scene.visitor();
  assert.equal((await visitor.post("/set", { text: "a\ud800b" })).status, 200);
  assert.equal((await visitor.get("/")).json.values.text, "a\ufffdb");
});

inBothModes("a health check without Cloakroom needs no session", async (t, mode) => {
  const scene = await startScene(t, mode, (sessions) => {
    const app = express();
    app.get("/health", (_req, res) => res.send("ok"));
    app.use(sessions);
    app.get("/", (_req, res) => res.send("page"));
    app.use((error, _req, res, _next) => res.status(error.status).send(error.message));
    return app;
  });
  assert.equal((await fetchFrom(scene.site, "GET", "/health")).status, 200);
  const response = await fetchFrom(scene.site, "GET", "/");
  assert.equal(response.status, mode === "headers" ? 403 : 500);
  assert.match(response.text, /^this request did not come through Cloakroom: .*open the site at Cloakroom's address/);
});

inBothModes("a log-in without a name leaves no other principal", async (t, mode) => {
  const scene = await startScene(t, mode, (sessions) => {
    const app = express();
    const users = { ada: { id: 1, username: "ada" }, nameless: { id: 2 } };
    const passport = new Passport();
    passport.serializeUser((user, done) => done(null, user.id));
    passport.deserializeUser((id, done) =>
      done(
        null,
        Object.values(users).find((user) => user.id === id),
      ),
    );
    app.use(sessions, passport.session());
    app.get("/in", (req, res, next) => {
      req.login(users[req.query.user], { keepSessionInfo: true }, (error) => (error ? next(error) : res.send("in")));
    });
    return app;
  });
  const visitor = scene.visitor();
  for (const [user, principal] of [
    ["ada", "ada"],
    ["nameless", null],
  ]) {
    await visitor.get(`/in?user=${user}`);
    const sessions = await scene.sessions();
    assert.deepEqual(
      sessions.map((session) => session.principal),
      [principal],
    );
  }
});

inBothModes("a log-in as another user writes changed values whole", async (t, mode) => {
  const scene = await startScene(t, mode, (sessions) => {
    const app = express();
    app.use(sessions);
    app.get("/in", (req, res) => {
      req.session.user = { name: req.query.user, zone: "UTC" };
      req.session.roles = [...(req.session.roles ?? []), req.query.user];
      req.session.basket ??= req.query.user;
      cloakroom.login(req, req.query.user);
      res.send("in");
    });
    app.get("/", (req, res) => res.json(req.session));
    return app;
  });
  const visitor = scene.visitor();
  await visitor.get("/in?user=bob");
  await visitor.get("/in?user=ada");
  // What bob has left behind is not ada's.
  assert.deepEqual((await visitor.get("/")).json, { user: { name: "ada", zone: "UTC" }, roles: ["bob", "ada"] });
});

inBothModes("objects that look like values of other languages stay objects", async (t, mode) => {
  const scene = await startScene(t, mode, passportApp());
  const visitor = scene.visitor();
  const php = { $cloakroom: { php: "TzoxOiJBIjowOnt9" } };
  const wrapped = { $cloakroom: { json: php } };
  const own = { posted: php, twice: wrapped, list: [php], member: { x: php } };
  await visitor.post("/set", { ...own, n: 1 });
  const { values, version } = (await scene.only()).json;
  assert.deepEqual(values, { ...own, posted: wrapped, twice: { $cloakroom: { json: wrapped } }, n: 1 });
  assert.deepEqual((await visitor.get("/")).json.values, { ...own, n: 1 });
  assert.equal((await scene.only()).json.version, version, "reading does not write");
  // As it is stored, which is another value than the one that was read.
  await visitor.post("/set", { posted: wrapped });
  assert.deepEqual((await visitor.get("/")).json.values.posted, wrapped);
  await visitor.post("/set", { posted: { ...php, more: 1 } });
  assert.deepEqual((await scene.only()).json.values.posted, { $cloakroom: { json: { ...php, more: 1 } } });
  assert.deepEqual((await visitor.get("/")).json.values.posted, { ...php, more: 1 });
});

test("Express sees https behind Cloakroom", async (t) => {
  const scene = await startScene(
    t,
    "api",
    (sessions) => {
      const app = express();
      app.set("trust proxy", "loopback");
      app.use(sessions);
      app.get("/", (req, res) => res.json({ secure: req.secure, ip: req.ip }));
      return app;
    },
    { trust: "network" },
  );
  assert.deepEqual((await fetchFrom(scene.port, "GET", "/")).json, { secure: false, ip: "127.0.0.1" });
  const headers = { "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7" };
  assert.deepEqual((await fetchFrom(scene.site, "GET", "/", { headers: { ...headers, ...(await headersOfRequest(scene, "api")) } })).json, {
    secure: true, ip: "203.0.113.7",
  }); // prettier-ignore
});
