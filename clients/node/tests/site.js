"use strict";

/**
 * An Express site for the tests of all clients, with passport.
 *
 *     node site.js PORT middleware
 *     node --require cloakroom/register site.js PORT express-session
 */
const express = require(process.env.EXPRESS || "express");
const { Passport } = require("passport");
const { Strategy } = require("passport-local");
const { apply, sleep, valuesOf } = require("./operations");

const [port, form] = process.argv.slice(2);
const app = express();
const passport = new Passport();
passport.use(
  new Strategy({ usernameField: "name", passwordField: "name" }, (username, _password, done) =>
    done(null, { id: 1, username }),
  ),
);
passport.serializeUser((user, done) => done(null, user.username));
passport.deserializeUser((username, done) => done(null, { id: 1, username }));

app.get("/untouched", (_req, res) => res.json({ ok: true }));
if (form === "middleware") app.use(require("..")());
else
  app.use(
    require("express-session")({
      secret: "of the tests",
      resave: false,
      saveUninitialized: false,
      store: stockStore(),
    }),
  );
app.use(express.json({ strict: false, limit: "10mb" }));
app.use(passport.initialize(), passport.session());

const call = (target, method, ...args) =>
  new Promise((resolve, reject) => target[method](...args, (error) => (error ? reject(error) : resolve())));
// Express 4 does not wait for handlers.
const handler = (handle) => (req, res, next) => handle(req, res, next).catch(next);

app.get("/read", (req, res) => res.json({ values: valuesOf(req.session) }));
app.get("/get", (req, res) => {
  const has = Object.hasOwn(req.session, req.query.key);
  res.json(has ? { has, value: req.session[req.query.key] } : { has });
});
app.get("/id", (req, res) => {
  // express-session keeps no session without a value; Cloakroom keeps one whose id was read.
  if (process.env.STOCK) req.session.kept = true;
  res.json({ id: req.session.id });
});
app.get("/who", (req, res) => res.json({ principal: req.user?.username ?? null }));
app.post(
  "/change",
  handler(async (req, res) => {
    if (req.query.sleep) await sleep(Number(req.query.sleep));
    if (req.query.stream) res.write('{"ok": ');
    apply(req.session, req.body);
    if (req.query.save) await call(req.session, "save");
    if (req.query.stream) return res.end("true}");
    res.status(Number(req.query.status ?? 200)).json({ ok: true });
  }),
);
app.post("/login", (req, res, next) => {
  passport.authenticate("local", { keepSessionInfo: true })(req, res, (error) =>
    error ? next(error) : res.json({ ok: true }),
  );
});
app.post(
  "/logout",
  handler(async (req, res) => {
    await call(req, "logout", { keepSessionInfo: form !== "middleware" });
    res.json({ ok: true });
  }),
);
app.post(
  "/regenerate",
  handler(async (req, res) => {
    const values = { ...req.session };
    delete values.cookie;
    await call(req.session, "regenerate");
    Object.assign(req.session, values);
    res.json({ ok: true });
  }),
);
app.post(
  "/flush",
  handler(async (req, res) => {
    await call(req.session, "regenerate");
    apply(req.session, req.body);
    res.json({ ok: true });
  }),
);

/** Returns the store of express-session's own sessions: in memory, or in Redis. */
function stockStore() {
  if (!process.env.REDIS_PORT) return undefined;
  const client = require("redis").createClient({ url: `redis://127.0.0.1:${process.env.REDIS_PORT}` });
  client.connect();
  return new (require("connect-redis").RedisStore)({ client });
}

app.listen(Number(port), "127.0.0.1");
