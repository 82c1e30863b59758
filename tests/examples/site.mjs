// node site.mjs 3000
import { createServer } from "node:http";

async function session(request, method, path, body) {
  const answer = await fetch(request.headers["x-session-url"] + path, {
    method,
    headers: { "X-Session-Token": request.headers["x-session-token"] },
    body: body && JSON.stringify(body),
  });
  return answer.status === 204 ? null : answer.json();
}

async function serve(request, response) {
  const url = new URL("http://site" + request.url); // not new URL(path, base): it reads //x as a host
  if (url.pathname === "/login") {
    // check the password first
    await session(request, "PATCH", "", { principal: url.searchParams.get("name") });
  } else if (url.pathname === "/logout") {
    await session(request, "DELETE", "");
  } else {
    const visits = await session(request, "POST", "/values/visits/increment");
    const name = decodeURIComponent(request.headers["x-session-principal"] ?? "stranger");
    return response.setHeader("Content-Type", "text/plain; charset=utf-8").end(`Hello ${name}, visit ${visits}\n`);
  }
  response.writeHead(303, { Location: "/" }).end();
}

createServer((request, response) => {
  serve(request, response).catch(() => response.destroy()); // uncaught, it would end Node
}).listen(Number(process.argv[2]), "127.0.0.1");
