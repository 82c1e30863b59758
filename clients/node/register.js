"use strict";

/**
 * Puts Cloakroom's middleware in the place of express-session, in a site that is not changed:
 *
 *     node --require cloakroom/register app.js
 */
const diagnostics = require("node:diagnostics_channel");
const Module = require("node:module");
const cloakroom = require("./index");

const EXPRESS_SESSION = /[\\/]express-session[\\/]index\.js$/;
const load = Module._extensions[".js"];
let isFound = false;

// Both `require` and `import` come here; every copy of the package that the site has is replaced.
Module._extensions[".js"] = function (module, filename) {
  load.apply(this, arguments);
  if (!EXPRESS_SESSION.test(filename)) return;
  isFound = true;
  const stock = module.exports;
  const session = (options = {}) => {
    const { cookie, unset } = options;
    const fallback = process.env.CLOAKROOM_CLIENT_FALLBACK === "stock" ? stock(options) : undefined;
    return cloakroom({ cookie: typeof cookie === "function" ? undefined : cookie, unset, fallback });
  };
  module.exports = Object.assign(session, stock);
};

// A bundler may have put express-session into the site's own file.
const requests = diagnostics.channel("http.server.request.start");
let hasChecked = false;
requests.subscribe(function check({ request }) {
  if (hasChecked || (!isFound && request.headers["x-session-token"] === undefined)) return;
  hasChecked = true;
  setImmediate(() => requests.unsubscribe(check)); // Node 18 fails if a subscriber leaves while it is called
  if (!isFound) console.error("cloakroom: express-session is not a module of this site; use app.use(cloakroom())");
});
