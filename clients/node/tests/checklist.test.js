"use strict";

/**
 * What the README of express-session 1.19 says about `req.session`, line by line: with express-session itself, and
 * with this package by calls of the API and by header exchange.
 */
const assert = require("node:assert/strict");
const { once } = require("node:events");
const http = require("node:http");
const test = require("node:test");
const express = require("express");
const stock = require("express-session");
const { Visitor, startScene } = require("./harness");

const KINDS = ["express-session", "api", "headers"];
const HOUR = 3_600_000;

/** Runs a check with each kind of sessions; `routes(app)` defines the site. */
function line(text, routes, check, { kinds = KINDS, ...options } = {}) {
  for (const kind of kinds) {
    test(`${text} (${kind})`, async (t) => {
      const build = (sessions) => {
        const app = express();
        app.use(sessions);
        routes(app);
        app.get("/values", (req, res) => res.json({ ...req.session, cookie: undefined }));
        return app;
      };
      if (kind !== "express-session") return check(await startScene(t, kind, build, options), kind);
      const settings = { secret: "of the tests", resave: false, saveUninitialized: false, ...options };
      const server = http.createServer(build(stock(settings))).listen(0, "127.0.0.1");
      await once(server, "listening");
      t.after(() => {
        server.close();
        server.closeAllConnections();
      });
      return check({ visitor: () => new Visitor(server.address().port) }, kind);
    });
  }
}

/** Responds with what a callback gives, or its error. */
const respond = (res, value) => (error) => res.json(error ? { error: error.message } : value());

line(
  "session data is nested objects, serialized as JSON",
  (app) =>
    app.get("/", (req, res) => {
      req.session.views ??= { pages: {}, since: new Date(0) };
      const { pages } = req.session.views;
      pages[req.query.page] = (pages[req.query.page] ?? 0) + 1;
      res.json(req.session.views);
    }),
  async ({ visitor: make }) => {
    const visitor = make();
    for (const page of ["a", "b", "a"]) await visitor.get(`/?page=${page}`);
    assert.deepEqual((await visitor.get("/values")).json, {
      views: { pages: { a: 2, b: 1 }, since: "1970-01-01T00:00:00.000Z" },
    });
    assert.deepEqual((await make().get("/values")).json, {}, "another visitor has another session");
  },
);

line(
  "the view counter of the README",
  (app) =>
    app.get("/", (req, res) => {
      if (req.session.views) {
        req.session.views += 1;
        res.setHeader("Content-Type", "text/html");
        res.write(`<p>views: ${req.session.views}</p>`);
        res.write(`<p>expires in: ${req.session.cookie.maxAge / 1000}s</p>`);
        res.end();
      } else {
        req.session.views = 1;
        res.end("welcome to the session demo. refresh!");
      }
    }),
  async ({ visitor: make }) => {
    const visitor = make();
    assert.equal((await visitor.get("/")).text, "welcome to the session demo. refresh!");
    assert.match((await visitor.get("/")).text, /^<p>views: 2<\/p>/);
    // A change before the first part of the body is written with the head.
    assert.match((await visitor.get("/")).text, /^<p>views: 3<\/p>/);
  },
  { cookie: { maxAge: 60_000 } },
);

line(
  "regenerate: a new id and a new Session at req.session",
  (app) =>
    app
      .get("/", (req, res) => {
        req.session.a = 1;
        res.json({});
      })
      .get("/regenerate", (req, res) => {
        const old = req.session;
        const chained = req.session.regenerate((error) => {
          const isOther = req.session !== old && typeof req.session.save === "function";
          const left = Object.keys(req.session).filter((key) => key !== "cookie");
          req.session.b = 2;
          res.json({ error: error ?? null, isOther, left, isChained: chained === old, kept: old.a });
        });
      })
      .get("/id", (req, res) => res.json(req.session.id)),
  async ({ visitor: make }) => {
    const visitor = make();
    await visitor.get("/");
    const before = (await visitor.get("/id")).json;
    const planted = new Visitor(visitor.port, visitor.jar);
    const found = (await visitor.get("/regenerate")).json;
    assert.deepEqual(found, { error: null, isOther: true, left: [], isChained: true, kept: 1 });
    assert.notEqual((await visitor.get("/id")).json, before);
    assert.deepEqual((await visitor.get("/values")).json, { b: 2 });
    assert.deepEqual((await planted.get("/values")).json, {}, "the old session is destroyed");
  },
);

line(
  "destroy: unsets req.session",
  (app) =>
    app
      .get("/", (req, res) => {
        req.session.a = 1;
        res.json({});
      })
      .get("/destroy", (req, res) => {
        const { session } = req;
        const chained = session.destroy((error) => {
          res.json({ error: error ?? null, type: typeof req.session, isChained: chained === session });
        });
      }),
  async ({ visitor: make, sessions }) => {
    const visitor = make();
    await visitor.get("/");
    assert.deepEqual((await visitor.get("/destroy")).json, { error: null, type: "undefined", isChained: true });
    assert.deepEqual((await visitor.get("/values")).json, {});
    if (sessions) assert.deepEqual(await sessions(), []);
    assert.equal((await make().get("/destroy")).status, 200, "without a session");
  },
);

line(
  "reload: reads the values again",
  (app) =>
    app
      .get("/", (req, res) => {
        req.session.a = 1;
        res.json({});
      })
      .get("/reload", (req, res) => {
        const old = req.session;
        req.session.saved = true;
        req.session.save((failed) => {
          if (failed) return res.json({ error: failed.message });
          req.session.a = 2;
          old.reload(respond(res, () => ({ ...req.session, cookie: undefined, isOther: req.session !== old })));
        });
      }),
  async ({ visitor: make }) => {
    const visitor = make();
    await visitor.get("/");
    const { a, saved, isOther } = (await visitor.get("/reload")).json;
    assert.deepEqual([a, saved, isOther], [1, true, true], "what was not saved is dropped");
  },
);

line(
  "reload: fails without a session",
  (app) => app.get("/reload", (req, res) => void req.session.reload(respond(res, () => ({})))),
  async ({ visitor: make }) => {
    assert.deepEqual((await make().get("/reload")).json, { error: "failed to load session" });
  },
);

line(
  "save: writes at once, and returns the session",
  (app) =>
    app
      .get("/", (req, res) => {
        req.session.a = 1;
        const chained = req.session.save((error) => {
          req.session.b = 2;
          res.json({ error: error ?? null, isChained: chained === req.session });
        });
      })
      .get("/quiet", (req, res) => {
        req.session.c = 3;
        req.session.touch().save();
        res.json({});
      }),
  async ({ visitor: make }, kind) => {
    const visitor = make();
    // express-session returns nothing, although it says so in its source.
    assert.deepEqual((await visitor.get("/")).json, { error: null, isChained: kind !== "express-session" });
    assert.equal((await visitor.get("/quiet")).status, 200);
    assert.deepEqual((await visitor.get("/values")).json, { a: 1, b: 2, c: 3 });
  },
);

line(
  "save: is seen by another request while this one runs",
  (app) =>
    app
      .get("/", (req, res) => {
        req.session.n = 0;
        res.json({});
      })
      .get("/long", (req, res) => {
        req.session.n = 1;
        req.session.save(async () => {
          const other = await new Visitor(Number(req.query.port), JSON.parse(req.query.jar)).get("/values");
          res.json(other.json);
        });
      }),
  async ({ visitor: make }) => {
    const visitor = make();
    await visitor.get("/");
    const target = `/long?jar=${encodeURIComponent(JSON.stringify(visitor.jar))}&port=${visitor.port}`;
    assert.deepEqual((await visitor.get(target)).json, { n: 1 });
  },
);

line(
  "touch: resets maxAge",
  (app) =>
    app.get("/", async (req, res) => {
      req.session.a = 1;
      req.session.cookie.maxAge = HOUR;
      await new Promise((resolve) => setTimeout(resolve, 30));
      const aged = req.session.cookie.maxAge;
      const chained = req.session.touch();
      res.json({ aged, fresh: req.session.cookie.maxAge, isChained: chained === req.session });
    }),
  async ({ visitor: make }) => {
    const { aged, fresh, isChained } = (await make().get("/")).json;
    assert.ok(aged <= HOUR - 25 && fresh > aged && isChained);
  },
);

line(
  "req.session.id: the same on each request, and cannot be modified",
  (app) =>
    app.get("/", (req, res) => {
      req.session.a = 1;
      assert.throws(() => {
        req.session.id = "another";
      }, TypeError);
      res.json({ id: req.session.id, sessionID: req.sessionID });
    }),
  async ({ visitor: make }) => {
    const visitor = make();
    const [first, second] = [(await visitor.get("/")).json, (await visitor.get("/")).json];
    assert.ok(first.id);
    assert.equal(first.id, first.sessionID);
    assert.deepEqual(first, second);
    assert.notEqual((await make().get("/")).json.id, first.id);
  },
);

line(
  "cookie.maxAge and cookie.expires are equivalent",
  (app) =>
    app.get("/", (req, res) => {
      const { cookie } = req.session;
      cookie.expires = new Date(Date.now() + HOUR);
      const byDate = [Math.round(cookie.maxAge / 1000), Math.round(cookie.originalMaxAge / 1000)];
      cookie.maxAge = 2 * HOUR;
      res.json([...byDate, Math.round((cookie.expires - Date.now()) / 1000), cookie.originalMaxAge / 1000]);
    }),
  async ({ visitor: make }) => {
    assert.deepEqual((await make().get("/")).json.map(Math.round), [3600, 3600, 7200, 7200]);
  },
);

line(
  "cookie.maxAge sets the lifetime of the session",
  (app) =>
    app.get("/", (req, res) => {
      req.session.n = (req.session.n ?? 0) + 1;
      if (req.query.age) req.session.cookie.maxAge = Number(req.query.age);
      if (req.query.date) req.session.cookie.expires = new Date(Date.now() + Number(req.query.date));
      if (req.query.close) req.session.cookie.expires = false;
      res.json({});
    }),
  async ({ visitor: make, only }) => {
    const visitor = make();
    await visitor.get(`/?age=${HOUR}`);
    assert.deepEqual((await only()).json.expiry, { idle: 3600 });
    await visitor.get("/");
    assert.deepEqual((await only()).json.expiry, { idle: 3600 });
    await visitor.get(`/?date=${2 * HOUR}`);
    assert.deepEqual((await only()).json.expiry, { idle: 7200 });
    await visitor.get("/?close=1");
    assert.equal((await only()).json.expires_at_browser_close, true);
  },
  { kinds: ["api", "headers"] },
);

line(
  "cookie.maxAge returns the time remaining",
  (app) =>
    app.get("/", (req, res) => {
      req.session.a = 1;
      const { maxAge, originalMaxAge } = req.session.cookie;
      res.json({ maxAge, originalMaxAge });
    }),
  async ({ visitor: make }) => {
    const visitor = make();
    await visitor.get("/");
    const { maxAge, originalMaxAge } = (await visitor.get("/")).json;
    assert.equal(originalMaxAge, HOUR);
    assert.ok(maxAge > HOUR - 5000 && maxAge <= HOUR, maxAge);
  },
  { cookie: { maxAge: HOUR } },
);

line(
  "the cookie option sets the lifetime of a new session",
  (app) =>
    app.get("/", (req, res) => {
      req.session.n = (req.session.n ?? 0) + 1;
      res.json({});
    }),
  async ({ visitor: make, only }) => {
    const visitor = make();
    await visitor.get("/");
    assert.deepEqual((await only()).json.expiry, { idle: 3600 });
  },
  { kinds: ["api", "headers"], cookie: { maxAge: HOUR } },
);

line(
  "the cookie has defaults and serializes",
  (app) =>
    app.get("/", (req, res) => {
      const { cookie } = req.session;
      const json = JSON.parse(JSON.stringify(cookie));
      cookie.sameSite = "lax";
      cookie.secure = true;
      res.json({ json, text: cookie.serialize("a", "b c"), data: Object.keys(cookie.data).sort() });
    }),
  async ({ visitor: make }) => {
    assert.deepEqual((await make().get("/")).json, {
      json: { originalMaxAge: null, expires: null, httpOnly: true, path: "/" },
      text: "a=b%20c; Path=/; HttpOnly; Secure; SameSite=Lax",
      data: [
        "domain",
        "expires",
        "httpOnly",
        "originalMaxAge",
        "partitioned",
        "path",
        "priority",
        "sameSite",
        "secure",
      ],
    });
  },
);

line(
  "unset: keep is the default, and keeps the session",
  (app) =>
    app
      .get("/", (req, res) => res.json(Object.assign(req.session, { a: 1 }) && {}))
      .get("/unset", (req, res) => {
        req.session.b = 2;
        req.session = null;
        res.json({});
      }),
  async ({ visitor: make }) => {
    const visitor = make();
    await visitor.get("/");
    await visitor.get("/unset");
    assert.deepEqual((await visitor.get("/values")).json, { a: 1 });
  },
);

line(
  "unset: destroy destroys the session",
  (app) =>
    app
      .get("/", (req, res) => res.json(Object.assign(req.session, { a: 1 }) && {}))
      .get("/unset", (req, res) => {
        if (req.query.delete) delete req.session;
        else req.session = null;
        res.json({});
      }),
  async ({ visitor: make, sessions }) => {
    for (const query of ["", "?delete=1"]) {
      const visitor = make();
      await visitor.get("/");
      await visitor.get(`/unset${query}`);
      assert.deepEqual((await visitor.get("/values")).json, {});
      if (sessions) assert.deepEqual(await sessions(), []);
    }
  },
  { unset: "destroy" },
);

line(
  "saveUninitialized: false and resave: false: what is not modified is not stored",
  (app) => app.get("/", (req, res) => res.json({ ...req.session.cookie })),
  async ({ visitor: make, sessions }) => {
    const visitor = make();
    await visitor.get("/");
    assert.deepEqual(visitor.jar, {});
    if (sessions) assert.deepEqual(await sessions(), []);
  },
);

line(
  "Object.assign and JSON see the values",
  (app) =>
    app.get("/", (req, res) => {
      req.session.a = 1;
      const { cookie: _, ...copy } = req.session;
      const { cookie: __, ...json } = JSON.parse(JSON.stringify(req.session));
      res.json([copy, json, Object.hasOwn(req.session, "a"), "b" in req.session]);
    }),
  async ({ visitor: make }) => {
    assert.deepEqual((await make().get("/")).json, [{ a: 1 }, { a: 1 }, true, false]);
  },
);

line(
  "req.sessionStore has the session of the request",
  (app) =>
    app.get("/", (req, res) => {
      req.session.a = 1;
      const { sessionStore, sessionID } = req;
      req.session.save(() => {
        sessionStore.get(sessionID, (error, found) => {
          sessionStore.touch(sessionID, req.session, () => {
            sessionStore.destroy(sessionID, () => {
              sessionStore.generate(req);
              req.session.b = 2;
              res.json({ error: error ?? null, a: found.a });
            });
          });
        });
      });
    }),
  async ({ visitor: make }) => {
    const visitor = make();
    assert.deepEqual((await visitor.get("/")).json, { error: null, a: 1 });
    assert.deepEqual((await visitor.get("/values")).json, { b: 2 });
  },
);
