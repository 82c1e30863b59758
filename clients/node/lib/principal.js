"use strict";

const { untag } = require("./diff");

/**
 * Returns what identifies the user in the values of a session, or undefined if no user is logged in.
 *
 * @param {string | ((values: object) => unknown) | undefined} setting a path such as `user.name`, a function, or
 *   nothing, which stands for the user that passport has stored
 */
function userIn(texts, setting) {
  let user;
  if (typeof setting === "function") {
    user = setting(Object.fromEntries([...texts].map(([key, text]) => [key, parse(text)])));
  } else {
    const [key, ...members] = (setting ?? "passport.user").split(".");
    user = texts.has(key) ? parse(texts.get(key)) : undefined;
    for (const member of members) user = Object.hasOwn(Object(user), member) ? user[member] : undefined;
  }
  return user === null || user === "" || user === false ? undefined : user;
}

function parse(text) {
  return untag(JSON.parse(text));
}

/** Returns the name of the user; undefined if passport's user has none. */
function nameOf(user, setting, req) {
  if (setting) return String(user);
  // What passport stores is mostly a primary key. The user itself has been set by its log-in.
  const loggedIn = req[req._userProperty || "user"];
  return [loggedIn?.username, loggedIn, user?.username].find((name) => typeof name === "string" && name !== "");
}

module.exports = { nameOf, userIn };
