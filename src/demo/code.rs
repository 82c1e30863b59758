//! The code behind each page, as a site in PHP, Python or Node would have it.
//!
//! `session` in these snippets is the helper function of the complete sites, which are in `code/`.

use super::page::Page;

/// The same code in each language.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code {
    pub(super) php: &'static str,
    pub(super) python: &'static str,
    pub(super) node: &'static str,
}

/// Complete sites: a visit counter, log-in and log-out.
pub(super) const SITES: Code = Code {
    php: include_str!("code/site.php"),
    python: include_str!("code/site.py"),
    node: include_str!("code/site.mjs"),
};

impl Code {
    /// Returns the code behind a page; `None` for the page that shows [`SITES`].
    pub(super) fn behind(page: Page) -> Option<Self> {
        Some(match page {
            Page::Visits => VISITS,
            Page::Parallel => PARALLEL,
            Page::Account => ACCOUNT,
            Page::Values => VALUES,
            Page::Message => MESSAGE,
            Page::Lifetime => LIFETIME,
            Page::Cookie => COOKIE,
            Page::Devices => DEVICES,
            Page::Exchange => EXCHANGE,
            Page::OwnSite => return None,
        })
    }
}

const VISITS: Code = Code {
    php: r#"$session = session('PATCH', '', [
    'increment' => ['visits' => 1],
    'values' => ['last_visit' => date(DATE_RFC3339)],
]);
echo "Visit {$session->values->visits}";"#,
    python: r#"now = datetime.datetime.now(datetime.UTC).isoformat()
session = self.session("PATCH", "", {"increment": {"visits": 1}, "values": {"last_visit": now}})
print("Visit", session["values"]["visits"])"#,
    node: r#"const { values } = await session(request, "PATCH", "", {
  increment: { visits: 1 },
  values: { last_visit: new Date().toISOString() },
});
response.end(`Visit ${values.visits}`);"#,
};

const PARALLEL: Code = Code {
    php: r"// Atomic: no request is lost.
session('PATCH', '', ['increment' => ['atomic' => 1]]);

// Read, then write: requests at the same time overwrite each other.
$count = session('GET', '')->values->overwritten ?? 0;
session('PATCH', '', ['values' => ['overwritten' => $count + 1]]);",
    python: r#"# Atomic: no request is lost.
self.session("PATCH", "", {"increment": {"atomic": 1}})

# Read, then write: requests at the same time overwrite each other.
count = self.session("GET", "")["values"].get("overwritten", 0)
self.session("PATCH", "", {"values": {"overwritten": count + 1}})"#,
    node: r#"// Atomic: no request is lost.
await session(request, "PATCH", "", { increment: { atomic: 1 } });

// Read, then write: requests at the same time overwrite each other.
const { values } = await session(request, "GET", "");
const overwritten = (values.overwritten ?? 0) + 1;
await session(request, "PATCH", "", { values: { overwritten } });"#,
};

const ACCOUNT: Code = Code {
    php: r"// Log in, after checking the password. The cookie gets a new value.
session('PATCH', '', ['principal' => $_POST['name'], 'expiry' => ['browser_close' => true]]);

// Put something into the basket.
session('POST', '/values/basket/append', ['item' => $_POST['item']]);

// Log out.
session('DELETE', '');",
    python: r#"# Log in, after checking the password. The cookie gets a new value.
self.session("PATCH", "", {"principal": form["name"], "expiry": {"browser_close": True}})

# Put something into the basket.
self.session("POST", "/values/basket/append", {"item": form["item"]})

# Log out.
self.session("DELETE", "")"#,
    node: r#"// Log in, after checking the password. The cookie gets a new value.
await session(request, "PATCH", "", { principal: form.name, expiry: { browser_close: true } });

// Put something into the basket.
await session(request, "POST", "/values/basket/append", { item: form.item });

// Log out.
await session(request, "DELETE", "");"#,
};

const VALUES: Code = Code {
    php: r"foreach (session('GET', '')->values as $key => $value) {
    echo htmlspecialchars($key), ': ', htmlspecialchars(json_encode($value)), '<br>';
}
session('PATCH', '', ['values' => ['color' => 'blue']]);  // sets a value
$color = session('DELETE', '/values/color');              // removes it and returns it
session('DELETE', '');                                    // ends the session",
    python: r#"for key, value in self.session("GET", "")["values"].items():
    print(key, value)
self.session("PATCH", "", {"values": {"color": "blue"}})  # sets a value
color = self.session("DELETE", "/values/color")  # removes it and returns it
self.session("DELETE", "")  # ends the session"#,
    node: r#"for (const [key, value] of Object.entries((await session(request, "GET", "")).values)) {
  console.log(key, value);
}
await session(request, "PATCH", "", { values: { color: "blue" } }); // sets a value
const color = await session(request, "DELETE", "/values/color"); // removes it and returns it
await session(request, "DELETE", ""); // ends the session"#,
};

const MESSAGE: Code = Code {
    php: r"// Before the redirect:
session('PATCH', '', ['values' => ['flash' => 'Saved.']]);

// On the next page:
if (isset(session('GET', '')->values->flash)) {
    echo htmlspecialchars(session('DELETE', '/values/flash'));
}",
    python: r#"# Before the redirect:
self.session("PATCH", "", {"values": {"flash": "Saved."}})

# On the next page:
if "flash" in self.session("GET", "")["values"]:
    print(html.escape(self.session("DELETE", "/values/flash")))"#,
    node: r#"// Before the redirect:
await session(request, "PATCH", "", { values: { flash: "Saved." } });

// On the next page:
if ("flash" in (await session(request, "GET", "")).values) {
  response.write(await session(request, "DELETE", "/values/flash"));
}"#,
};

const LIFETIME: Code = Code {
    php: r"$expiry = session('GET', '/expiry');
session('PUT', '/expiry', ['idle' => 3600]);            // one hour without a visit
session('PUT', '/expiry', ['browser_close' => true]);   // until the browser closes",
    python: r#"expiry = self.session("GET", "/expiry")
self.session("PUT", "/expiry", {"idle": 3600})  # one hour without a visit
self.session("PUT", "/expiry", {"browser_close": True})  # until the browser closes"#,
    node: r#"const expiry = await session(request, "GET", "/expiry");
await session(request, "PUT", "/expiry", { idle: 3600 }); // one hour without a visit
await session(request, "PUT", "/expiry", { browser_close: true }); // until the browser closes"#,
};

const COOKIE: Code = Code {
    php: r"session('PUT', '/test-cookie');                        // then redirect
$worked = session('GET', '/test-cookie')->worked;      // on the next page
session('DELETE', '/test-cookie');

session('POST', '/rotate');                            // a new value for the cookie",
    python: r#"self.session("PUT", "/test-cookie")  # then redirect
worked = self.session("GET", "/test-cookie")["worked"]  # on the next page
self.session("DELETE", "/test-cookie")

self.session("POST", "/rotate")  # a new value for the cookie"#,
    node: r#"await session(request, "PUT", "/test-cookie"); // then redirect
const { worked } = await session(request, "GET", "/test-cookie"); // on the next page
await session(request, "DELETE", "/test-cookie");

await session(request, "POST", "/rotate"); // a new value for the cookie"#,
};

const DEVICES: Code = Code {
    php: r"foreach (session('GET', '/principal/sessions')->sessions as $device) {
    echo htmlspecialchars($device->client->user_agent), $device->current ? ' (this one)' : '';
}
session('DELETE', '/principal/sessions/' . rawurlencode($_POST['id']));  // one of them
session('DELETE', '/principal/sessions');                                // all others",
    python: r#"for device in self.session("GET", "/principal/sessions")["sessions"]:
    print(device["client"]["user_agent"], "(this one)" if device["current"] else "")
self.session("DELETE", "/principal/sessions/" + urllib.parse.quote(form["id"]))  # one of them
self.session("DELETE", "/principal/sessions")  # all others"#,
    node: r#"for (const device of (await session(request, "GET", "/principal/sessions")).sessions) {
  console.log(device.client.user_agent, device.current ? "(this one)" : "");
}
await session(request, "DELETE", `/principal/sessions/${encodeURIComponent(form.id)}`); // one
await session(request, "DELETE", "/principal/sessions"); // all others"#,
};

const EXCHANGE: Code = Code {
    php: r#"$values = json_decode($_SERVER['HTTP_X_SESSION_DATA'] ?? '{}');
header('X-Session-Patch: {"increment": {"exchange_visits": 1}}');
echo 'Visit ', ($values->exchange_visits ?? 0) + 1;"#,
    python: r#"values = json.loads(self.headers.get("X-Session-Data", "{}"))
self.send_header("X-Session-Patch", '{"increment": {"exchange_visits": 1}}')
print("Visit", values.get("exchange_visits", 0) + 1)"#,
    node: r#"const values = JSON.parse(request.headers["x-session-data"] ?? "{}");
response.setHeader("X-Session-Patch", '{"increment": {"exchange_visits": 1}}');
response.end(`Visit ${(values.exchange_visits ?? 0) + 1}`);"#,
};
