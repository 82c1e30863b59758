//! The log lines of requests.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::raw::{RawUpstream, exchange, read_until};
use crate::support::{
    Browser, KEY, PATIENCE, Program, RedisServer, Script, Upstream, needs, until,
};

/// Writes a configuration with these routes into a directory of its own.
fn configuration(routes: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n\
         [session]\nkeys = [\"{KEY}\"]\n{routes}"
    );
    std::fs::write(&file, text).unwrap();
    (directory, file)
}

/// Returns the log lines that contain a text.
fn lines(program: &Program, text: &str) -> Vec<String> {
    program.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

#[tokio::test]
async fn warning_says_which_request_failed_and_why() {
    let upstream = Upstream::start();
    let (_directory, file) = configuration(&format!(
        "[[route]]\nupstream = \"{0}\"\nheader_exchange = true\n\
         [[route]]\npath = \"/down\"\nupstream = \"http://127.0.0.1:1\"\n",
        upstream.url()
    ));
    let program = Program::start(&file);
    let browser = Browser::to(program.serving().await.public);
    let made = browser.navigate("/", &Script::new().patch(&json!({"values": {"n": 1}}))).await;
    let session = made.json()["id"].as_str().unwrap().to_owned();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traced = [("traceparent", &*format!("00-{trace}-b7ad6b7169203331-01"))];

    let page = browser.send("DELETE", "/down/here?secret=1", &traced, &Script::new()).await;
    assert_eq!(page.status, 502);
    program.wait_for_log("request failed").await;
    let [line] = &*lines(&program, "request failed") else { panic!("one line") };
    for part in [
        " WARN ",
        " method=DELETE",
        " path=\"/down/here\"",
        " route=\"/down\"",
        " upstream=http://127.0.0.1:1",
        &format!(" session={session}"),
        &format!(" trace={trace}"),
        " error=upstream request failed",
        "Connection refused",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }

    let wrong = Script::new().header("X-Session-Patch", "{\"increment\": {\"n\": \"x\"}}");
    let page = browser.send("POST", "/form", &[], &wrong).await;
    assert_eq!(page.status, 502);
    program.wait_for_log("failed to apply X-Session-Patch").await;
    let [line] = &*lines(&program, "failed to apply X-Session-Patch") else { panic!("one line") };
    for part in [" method=POST", " path=\"/form\"", " route=\"/\"", &*session] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[tokio::test]
async fn refused_patch_is_logged_with_its_cause() {
    needs!("redis-server");
    let (upstream, server) = (Upstream::start(), RedisServer::start(&[]));
    let route = format!("[[route]]\nupstream = \"{}\"\nheader_exchange = true\n", upstream.url());
    let (_directory, file) = configuration(&route);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("memory:", &server.url())).unwrap();
    let program = Program::start(&file);
    let browser = Browser::to(program.serving().await.public);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).done();
    let patch = Script::new().header("X-Session-Patch", json!({"set": {"n": 1}}));
    assert_eq!(browser.navigate("/", &patch).await.status, 502);
    program.wait_for_log("failed to apply X-Session-Patch").await;
    let [line] = &*lines(&program, "failed to apply X-Session-Patch") else { panic!("one line") };
    let cause = format!(
        " error=failed to apply X-Session-Patch cause=\"the store is full: Redis server {} replied OOM command not \
         allowed when used memory > 'maxmemory'\"",
        server.address()
    );
    assert!(line.contains(&cause), "{line}");
}

#[tokio::test]
async fn ejection_is_logged_with_its_cause() {
    let upstream = Upstream::start();
    let down = "http://127.0.0.1:1";
    let route = format!("[[route]]\nupstream = [\"{down}\", \"{}\"]\n", upstream.url());
    let (_directory, file) = configuration(&route);
    let program = Program::start(&file);
    let browser = Browser::to(program.serving().await.public);
    let since = Instant::now();
    while !program.log().contains("upstream ejected after repeated failures") {
        assert!(since.elapsed() < PATIENCE, "it is ejected");
        browser.navigate("/", &Script::new()).await;
    }
    let [line] = &*lines(&program, "upstream ejected") else { panic!("one line") };
    let cause = format!(
        " upstream={down} error=failed to connect to the upstream cause=\"Connection refused (os error 111)\""
    );
    assert!(line.ends_with(&cause), "{line}");
}

#[tokio::test]
async fn warnings_of_one_cause_are_limited_and_counted() {
    let (_directory, file) =
        configuration("[[route]]\nupstream = \"http://127.0.0.1:1\"\n[log]\naccess = false\n");
    let program = Program::start(&file);
    let browser = Browser::to(program.serving().await.public);
    let mut requests = 0_u64;
    // The second line has the count of those that were suppressed since the first.
    while lines(&program, "request failed").len() < 2 {
        assert_eq!(browser.navigate("/", &Script::new()).await.status, 502);
        requests += 1;
    }
    let lines = lines(&program, "request failed");
    assert!(!lines[0].contains("suppressed"), "{}", lines[0]);
    let suppressed =
        lines[1].split("suppressed=").nth(1).unwrap().split_whitespace().next().unwrap();
    let suppressed: u64 = suppressed.parse().unwrap();
    assert!(suppressed > 0 && suppressed < requests, "{suppressed} of {requests}");
}

#[tokio::test]
async fn refused_head_is_logged_with_its_reason() {
    let (_directory, file) = configuration("[[route]]\nupstream = \"http://127.0.0.1:1\"\n");
    let program = Program::start(&file);
    let mut client = TcpStream::connect(program.serving().await.public).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nbad header: 1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    program.wait_for_log("refused").await;
    let [line] = &*lines(&program, "refused") else { panic!("one line") };
    assert!(line.contains("invalid HTTP header parsed"), "{line}");
}

/// Returns a field of a line as text, e.g. `status`; `None` if the line has none.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    rest.split(' ').next()
}

#[tokio::test]
async fn access_line_says_who_answered_and_how_long_it_took() {
    let upstream = Upstream::start();
    let (_directory, file) = configuration(&format!(
        "[[route]]\nupstream = \"{0}\"\n[[route]]\nhost = \"b.example\"\npath = \"/down\"\n\
         upstream = \"http://127.0.0.1:1\"\n",
        upstream.url()
    ));
    let program = Program::start(&file);
    let public = program.serving().await.public;
    let get = async |host: &str, path: &str, script: &Script| {
        let script = script.to_header();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Script: {script}\r\nConnection: close\r\n\r\n"
        );
        exchange(public, &request).await
    };
    let page = Script::new().body(&"x".repeat(5000));
    assert!(get("a.example:8080", "/page?secret=1", &page).await.ends_with("xxx"));
    assert!(get("b.example", "/down", &Script::new()).await.starts_with("HTTP/1.1 502"));
    assert!(get("b.example", "/other/_session", &page).await.ends_with("xxx"));
    assert!(get("b.example", "/_session", &page).await.starts_with("HTTP/1.1 404"));
    program.wait_for_log("path=\"/_session\"").await;
    let lines = lines(&program, " access: ");
    let [page, down, other, api] = &*lines else { panic!("four lines: {lines:#?}") };
    let named = |line, names: &[&str]| -> Vec<Option<String>> {
        names.iter().map(|name| field(line, name).map(str::to_owned)).collect()
    };
    let places = ["host", "route", "upstream"];
    let some = |texts: [&str; 3]| texts.map(|text| Some(text.to_owned()));
    assert_eq!(named(page, &places), some(["\"a.example\"", "\"/\"", &upstream.url()]));
    assert_eq!(
        named(down, &places),
        some(["\"b.example\"", "\"b.example/down\"", "http://127.0.0.1:1"])
    );
    assert_eq!(named(other, &places), some(["\"b.example\"", "\"/\"", &upstream.url()]));
    assert_eq!(named(api, &places), [Some("\"b.example\"".to_owned()), None, None]);
    assert_eq!(field(page, "bytes"), Some("5000"));
    assert_eq!(field(page, "end"), Some("\"complete\""));
    for line in [page, down, other] {
        let number = |name| field(line, name).unwrap().parse::<u64>().unwrap();
        assert!(number("upstream_ms") <= number("milliseconds"), "{line}");
    }
    assert_eq!(field(api, "upstream_ms"), None);
    assert!(!lines.concat().contains("secret"), "no query");
}

#[tokio::test]
async fn lines_have_the_id_of_a_trusted_proxy() {
    let (_directory, file) = configuration(
        "[limits]\ntrusted_proxies = [\"127.0.0.1\"]\n[[route]]\nupstream = \"http://127.0.0.1:1\"\n",
    );
    let program = Program::start(&file);
    let public = program.serving().await.public;
    for (path, id) in [("/given", "X-Request-Id: edge=\"7\"\r\n"), ("/own", "")] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{id}Connection: close\r\n\r\n");
        exchange(public, &request).await;
    }
    program.wait_for_log(" access: method=GET path=\"/own\"").await;
    let given = lines(&program, "path=\"/given\"");
    assert_eq!(given.len(), 2, "a warning and an access line: {given:#?}");
    for line in given {
        assert_eq!(field(&line, "request_id"), Some(r#""edge=\"7\"""#), "{line}");
        assert!(field(&line, "trace").is_some(), "{line}");
    }
    for line in lines(&program, "path=\"/own\"") {
        assert_eq!(field(&line, "request_id"), None, "{line}");
    }
}

#[tokio::test]
async fn slow_requests_are_logged_with_their_times() {
    let upstream = Upstream::start();
    let route = format!("[[route]]\nupstream = \"{}\"\n", upstream.url());
    let (_directory, file) = configuration(&format!("{route}[log]\nslow = \"100ms\"\n"));
    let program = Program::start(&file);
    let public = program.serving().await.public;
    let browser = Browser::to(public);
    let slow = tokio::spawn({
        let browser = browser.clone();
        async move { browser.navigate("/slow?secret=1", &Script::new().wait("gate")).await }
    });
    upstream.arrived("gate", 1).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    upstream.open("gate");
    assert_eq!(slow.await.unwrap().status, 200);
    program.wait_for_log("slow request").await;
    let lines = lines(&program, "slow request");
    let [line] = &*lines else { panic!("one line: {lines:#?}") };
    for part in [" WARN ", " path=\"/slow\"", " status=200", " route=\"/\"", " trace="] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(field(line, "upstream"), Some(&*upstream.url()));
    let number = |name| field(line, name).unwrap().parse::<u64>().unwrap();
    assert!(number("upstream_ms") >= 150, "{line}");
    assert!(number("milliseconds") >= number("upstream_ms") + number("store_ms"), "{line}");
}

/// A download or an event stream is long, but its head is not slow.
#[tokio::test]
async fn long_responses_are_not_slow() {
    let upstream = RawUpstream::start().await;
    let (_directory, file) = configuration(&format!(
        "[[route]]\nupstream = \"http://{}\"\n[log]\nslow = \"1s\"\n",
        upstream.address
    ));
    let program = Program::start(&file);
    let mut client = TcpStream::connect(program.serving().await.public).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut site, _) = upstream.head().await;
    site.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        .await
        .unwrap();
    read_until(&mut client, "data: 1").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    drop(site);
    program.wait_for_log(" access: ").await;
    assert_eq!(lines(&program, "slow request"), [""; 0]);
}

#[tokio::test]
async fn calls_of_the_session_api_are_logged() {
    let upstream = Upstream::start();
    let route = format!("[[route]]\nupstream = \"{}\"\n[log]\napi = true\n", upstream.url());
    let (_directory, file) = configuration(&route);
    let text = std::fs::read_to_string(&file).unwrap();
    let token = "[api]\nservice_token = \"a-service-token-of-32-characters\"\n";
    std::fs::write(&file, text.replace("[api]\n", token)).unwrap();
    let program = Program::start(&file);
    let serving = program.serving().await;
    let browser = Browser::to(serving.public);
    let script = Script::new().call("PUT", "/values/n", "1").get("/values/n?default=secret");
    let page = browser.navigate("/", &script).await;
    let trace = page.saw("x-request-id").unwrap();
    let ask = async |target: &str, token: &str| {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        );
        exchange(serving.api, &request).await;
    };
    ask("/_sessions?principal=lovelace", "a-service-token-of-32-characters").await;
    ask("/_sessions?principal=lovelace", "wrong").await;
    program.wait_for_log("status=401").await;
    let lines = lines(&program, " api: ");
    let [put, get, list, refused] = &*lines else { panic!("four lines: {lines:#?}") };
    for (line, call) in [(put, "method=PUT"), (get, "method=GET")] {
        assert!(line.contains(&format!("{call} path=\"/_session/values/n\" status=20")), "{line}");
        assert_eq!(field(line, "caller"), Some("\"session\""));
        assert_eq!(field(line, "trace"), Some(&*trace));
        assert!(field(line, "session").is_some() && field(line, "milliseconds").is_some());
    }
    assert!(list.contains("path=\"/_sessions\" status=200 caller=\"service\" peer=127.0.0.1"));
    assert_eq!((field(refused, "caller"), field(refused, "session")), (None, None));
    // No name that the hexadecimal digits of a trace could spell.
    assert!(["lovelace", "secret", "Bearer"].iter().all(|text| !lines.concat().contains(text)));
    assert!(!lines.concat().contains(&page.saw("x-session-token").unwrap()), "no token");
}

#[tokio::test]
async fn abandoned_call_is_logged_with_status_0() {
    needs!("redis-server");
    let (upstream, server) = (Upstream::start(), RedisServer::start(&[]));
    let route = format!("[[route]]\nupstream = \"{}\"\n[log]\napi = true\n", upstream.url());
    let (_directory, file) = configuration(&route);
    let text = std::fs::read_to_string(&file).unwrap();
    let token = "a-service-token-of-32-characters";
    let text = text.replace("[api]\n", &format!("[api]\nservice_token = \"{token}\"\n"));
    let store = format!("url = \"{}\"\ntimeout = \"10s\"", server.url());
    std::fs::write(&file, text.replace("url = \"memory:\"", &store)).unwrap();
    let program = Program::start(&file);
    let serving = program.serving().await;
    server.stop();
    let request = format!(
        "GET /_sessions?principal=ada HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    let call = async || {
        let mut caller = TcpStream::connect(serving.api).await.unwrap();
        caller.write_all(request.as_bytes()).await.unwrap();
        caller
    };
    // At once, so that the call may not even have begun: each has its line.
    for number in 1..=20 {
        drop(call().await);
        until("the call is logged", || lines(&program, " api: ").len() == number).await;
    }
    for line in lines(&program, " api: ") {
        assert!(line.contains("method=GET path=\"/_sessions\" status=0 "), "{line}");
        assert!(field(&line, "peer").is_some() && field(&line, "milliseconds").is_some(), "{line}");
    }
    // While it waits for Redis. On a busy machine, it may still not have begun.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = lines(&program, " api: ").len();
        let mut caller = call().await;
        timeout(Duration::from_millis(50), caller.read_u8()).await.unwrap_err();
        drop(caller);
        until("the call is logged", || lines(&program, " api: ").len() > before).await;
        let line = lines(&program, " api: ").remove(before);
        assert!(line.contains("status=0 "), "{line}");
        if line.contains("status=0 caller=\"service\"") {
            break;
        }
        assert!(Instant::now() < deadline, "{line}");
    }
}

/// Returns the text before the fields of a line, and the names of its fields.
fn outline(line: &str) -> (String, Vec<String>) {
    fn name(word: &str) -> Option<&str> {
        let (name, _) = word.split_once('=')?;
        let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        is_name.then_some(name)
    }
    let (_, rest) = line.split_once('Z').unwrap();
    let words: Vec<&str> = rest.split(' ').filter(|word| !word.is_empty()).collect();
    let head: Vec<&str> = words.iter().copied().take_while(|word| name(word).is_none()).collect();
    (head.join(" "), words.into_iter().filter_map(name).map(str::to_owned).collect())
}

#[tokio::test]
async fn guide_shows_each_line_with_its_fields() {
    let upstream = Upstream::start();
    let (_directory, file) = configuration(&format!(
        "[log]\napi = true\nslow = \"1ms\"\n[[route]]\nupstream = \"{}\"\n\
         [[route]]\npath = \"/down\"\nupstream = \"http://127.0.0.1:1\"\n",
        upstream.url()
    ));
    let program = Program::start(&file);
    let public = program.serving().await.public;
    let browser = Browser::to(public);
    let slow = tokio::spawn({
        let script = Script::new().call("PUT", "/values/n", "1").wait("gate");
        let browser = browser.clone();
        async move { browser.navigate("/", &script).await }
    });
    upstream.arrived("gate", 1).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    upstream.open("gate");
    slow.await.unwrap();
    exchange(public, "GET /down HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    exchange(public, "GET / HTTP/1.1\r\nHost: a\r\nbad header: 1\r\n\r\n").await;
    program.wait_for_log("access: refused").await;
    let written: Vec<_> = program.log().lines().map(outline).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guides/operate/logs.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let shown: Vec<_> =
        guide.split("```text\n").skip(1).map(|rest| rest.lines().next().unwrap()).collect();
    assert_eq!(shown.len(), 5);
    for line in shown {
        assert!(written.contains(&outline(line)), "{:?} is none of {written:#?}", outline(line));
    }
}

/// A client that does not wait leaves a line that says for which upstream it did not.
#[tokio::test]
async fn access_line_of_an_abandoned_request_has_its_upstream() {
    let upstream = Upstream::start();
    let (_directory, file) =
        configuration(&format!("[[route]]\nupstream = \"{}\"\n", upstream.url()));
    let program = Program::start(&file);
    let mut client = TcpStream::connect(program.serving().await.public).await.unwrap();
    let script = Script::new().wait("gate").to_header();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Script: {script}\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    upstream.arrived("gate", 1).await;
    drop(client);
    program.wait_for_log(" access: ").await;
    let [line] = &*lines(&program, " access: ") else { panic!("one line") };
    assert_eq!(field(line, "upstream"), Some(&*upstream.url()));
    assert_eq!((field(line, "status"), field(line, "bytes")), (Some("0"), Some("0")));
    assert!(field(line, "upstream_ms").is_some(), "{line}");
    assert_eq!(field(line, "end"), Some("\"dropped\""));
}

/// So that `journalctl -p warning` shows the lines that the runbook names.
#[tokio::test]
async fn journal_gets_the_priorities_of_lines() {
    let (_directory, file) = configuration("[[route]]\nupstream = \"http://127.0.0.1:1\"\n");
    let program = Program::start_under_journal(&file);
    let browser = Browser::to(program.serving().await.public);
    assert_eq!(browser.navigate("/", &Script::new()).await.status, 502);
    program.wait_for_log(" access: ").await;
    std::fs::write(&file, "[wrong]\n").unwrap();
    program.signal("-HUP");
    program.wait_for_log("reload failed").await;
    for line in program.log().lines() {
        let level = line.split_whitespace().nth(1).unwrap();
        let start = match level {
            "ERROR" => "<3>2",
            "WARN" => "<4>2",
            "INFO" => "2",
            level => panic!("{level}: {line}"),
        };
        assert!(line.starts_with(start), "{line}");
    }
    for level in [" ERROR ", " WARN ", " INFO "] {
        assert!(program.log().contains(level), "{level}");
    }
}

#[tokio::test]
async fn failed_start_is_an_error_of_the_journal() {
    let (_directory, file) = configuration("[wrong]\n[[route]]\nupstreams = 1\n");
    let mut program = Program::start_under_journal(&file);
    assert_eq!(program.ended().await.code(), Some(2));
    program.wait_for_log("upstreams").await;
    for line in program.log().lines() {
        assert!(line.starts_with("<3>"), "{line}");
    }
}

/// Another stream than that of the variable, and lines that are JSON.
#[tokio::test]
async fn other_lines_have_no_priorities() {
    let (_directory, file) = configuration("[[route]]\nupstream = \"http://127.0.0.1:1\"\n");
    let elsewhere = Program::start_with_variable("JOURNAL_STREAM", "1:1", &file);
    let text = std::fs::read_to_string(&file).unwrap();
    let json = file.with_file_name("json.toml");
    std::fs::write(&json, format!("{text}[log]\nformat = \"json\"\n")).unwrap();
    let json = Program::start_under_journal(&json);
    json.wait_for_log("\"serving\"").await;
    elsewhere.serving().await;
    for program in [elsewhere, json] {
        program.signal("-TERM");
        program.wait_for_log("draining").await;
        assert!(!program.log().lines().any(|line| line.starts_with('<')), "{}", program.log());
    }
}
