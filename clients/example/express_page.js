// node express_page.js PORT
const fs = require("node:fs");
const path = require("node:path");
const cloakroom = require("cloakroom");
const express = require("express");

const app = express();
// Before the client: the route of this page has no sessions.
app.get("/", (req, res) => res.redirect("/php/"));
app.use("/express", cloakroom(), express.urlencoded());
const page = fs.readFileSync(path.join(__dirname, "page.html"), "utf8");
const escape = (text) => text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt()};`);

app.all("/express/", (req, res) => {
  switch (req.query.do) {
    case "add":
      (req.session.basket ??= []).push(`${req.body.item} (Express)`);
      break;
    case "login": // check the password first
      cloakroom.login(req, req.body.name);
      break;
    case "logout":
      req.session.destroy();
      break;
    default: {
      const items = (req.session.basket ?? []).map((item) => `<li>${escape(item)}</li>`).join("");
      const user = escape(cloakroom.principal(req) ?? "nobody");
      const parts = { LANGUAGE: "Express", ITEMS: items, USER: user };
      return res.send(page.replace(/LANGUAGE|ITEMS|USER/g, (name) => parts[name]));
    }
  }
  res.redirect(303, "/express/");
});

app.listen(Number(process.argv[2]), "127.0.0.1");
