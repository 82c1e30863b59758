// Sessions as a site on Express has them today: express-session and connect-redis.
// Arguments: the ports of the site and of Redis.
const express = require("express");
const session = require("express-session");
const { RedisStore } = require("connect-redis");
const { createClient } = require("redis");

const [port, redisPort] = process.argv.slice(2).map(Number);
const page = ".".repeat(1024);
const values = {
  user_id: 48213, name: "Ada Example", roles: ["customer", "editor"],
  csrf: "0123456789abcdef".repeat(2), pad: ".".repeat(64), n: 1,
};

async function main() {
  const client = createClient({ url: `redis://127.0.0.1:${redisPort}` });
  await client.connect();
  const app = express();
  app.disable("x-powered-by");
  app.get("/plain", (request, response) => response.type("text").send(page));
  app.use(session({
    store: new RedisStore({ client }), secret: "of the benchmark", resave: false, saveUninitialized: false,
  }));
  app.get("/begin", (request, response) => {
    Object.assign(request.session, values);
    response.send("created");
  });
  // A page without its session would be a comparison of something else.
  app.use((request, response, next) => response.status(request.session.user_id ? 200 : 500) && next());
  app.get("/read", (request, response) => response.type("text").send(page));
  app.get("/increment", (request, response) => {
    request.session.n += 1;
    response.type("text").send(page);
  });
  app.listen({ port, host: "127.0.0.1", backlog: 1024 });
}

main();
