// A site with sessions of its own. Arguments: the port, and express-session, rolling, cookie-session or changing.
const crypto = require('node:crypto');
const express = require('express');

const [port, means] = process.argv.slice(2);
const app = express();
app.use(express.urlencoded());

// As Laravel does: the session is in the site's memory, its id encrypted in the cookie, with each response anew.
const changing = () => {
  const key = crypto.randomBytes(32);
  const sessions = new Map();
  const encrypt = (id) => {
    const nonce = crypto.randomBytes(12);
    const cipher = crypto.createCipheriv('aes-256-gcm', key, nonce);
    return Buffer.concat([nonce, cipher.update(id), cipher.final(), cipher.getAuthTag()]).toString('base64url');
  };
  const decrypt = (text) => {
    const bytes = Buffer.from(text, 'base64url');
    const cipher = crypto.createDecipheriv('aes-256-gcm', key, bytes.subarray(0, 12));
    cipher.setAuthTag(bytes.subarray(-16));
    return cipher.update(bytes.subarray(12, -16), undefined, 'utf8') + cipher.final('utf8');
  };
  return (request, response, next) => {
    const found = /(?:^|; )changing=([^;]*)/.exec(request.headers.cookie ?? '');
    const create = () => {
      request.id = crypto.randomUUID();
      request.session = {};
      sessions.set(request.id, request.session);
    };
    request.id = found ? decrypt(found[1]) : undefined;
    request.session = sessions.get(request.id);
    if (!request.session) create();
    request.restart = (done) => {
      sessions.delete(request.id);
      create();
      done();
    };
    const writeHead = response.writeHead;
    response.writeHead = function (...rest) {
      this.appendHeader('Set-Cookie', `changing=${encrypt(request.id)}; Path=/; HttpOnly; SameSite=Lax`);
      return writeHead.apply(this, rest);
    };
    next();
  };
};

const sessions = {
  'express-session': () => require('express-session')({secret: 'test', resave: false, saveUninitialized: true}),
  rolling: () => require('express-session')({
    secret: 'test', resave: false, saveUninitialized: true, rolling: true, cookie: {maxAge: 600_000},
  }),
  'cookie-session': () => require('cookie-session')({name: 'session', keys: ['test']}),
  changing,
};
app.use(sessions[means]());

const restart = (request, done) => {
  if (request.restart) return request.restart(done);
  if (request.session.regenerate) return request.session.regenerate(done);
  request.session = {};
  done();
};

// Each page writes, as sites do that count or show messages once.
app.get('/', (request, response) => {
  request.session.views = (request.session.views ?? 0) + 1;
  response.json({user: request.session.user ?? null, notes: request.session.notes ?? []});
});
app.post('/login', (request, response) => {
  restart(request, () => {
    request.session.user = request.body.user;
    response.redirect(303, '/');
  });
});
app.post('/note', (request, response) => {
  request.session.notes = [...(request.session.notes ?? []), request.body.text];
  response.redirect(303, '/');
});
app.post('/logout', (request, response) => {
  if (request.session.destroy) {
    return request.session.destroy(() => response.clearCookie('connect.sid').redirect(303, '/'));
  }
  if (request.restart) return request.restart(() => response.redirect(303, '/'));
  request.session = null;
  response.redirect(303, '/');
});
app.listen(Number(port), '127.0.0.1');
