// Parses each path of a JSON list on standard input in the ways that Node and Express parse it.
import { readFileSync } from "node:fs";
import { posix } from "node:path";
import { parse } from "node:url";

const or = (read) => (path) => {
  try {
    return read(path);
  } catch {
    return null; // the site would respond with an error
  }
};
const url = (path) => new URL(path, "http://site").pathname;
const readings = {
  raw: (path) => path,
  url,
  "url, decoded": (path) => decodeURIComponent(url(path)),
  "static files": (path) => posix.normalize(decodeURIComponent(url(path))),
  "static files, not by URL": (path) => posix.normalize(decodeURIComponent(path)),
  "url.parse": (path) => parse(path).pathname,
  "url.parse, slashes": (path) => parse(path, false, true).pathname,
};
// The path as app.use(PATH) of Express 4 matches it (path-to-regexp 0.1: end = false, not sensitive, not strict).
const routes = JSON.parse(process.argv[2]);
const express = (path) => routes.find((route) => new RegExp(`^${route}\\/?(?=\\/|$)`, "i").test(path)) ?? "/";

const paths = JSON.parse(readFileSync(0, "utf8"));
const answers = Object.entries(readings).map(([name, read]) => [name, paths.map(or(read))]);
console.log(JSON.stringify(Object.fromEntries([...answers, ["express", paths.map(express)]])));
