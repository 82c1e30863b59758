//! The demo without a browser: pages, assets, code samples, errors and ports.

use std::net::TcpListener;
use std::process::Command;

use cloakroom::body::Body;
use cloakroom::client::{Config, Pool};
use cloakroom::demo::{Demo, Error, Options};
use cloakroom::server::Tasks;
use http::{Request, StatusCode};

use crate::support::{Browser, PATIENCE, Page, Script, needs};

fn start(port: u16) -> Result<Demo, Error> {
    crate::support::init_log();
    Demo::start(Options { port: Some(port) })
}

fn visitor(demo: &Demo) -> Browser {
    Browser::to(([127, 0, 0, 1], demo.port()).into())
}

async fn get(visitor: &Browser, path: &str) -> Page {
    visitor.navigate(path, &Script::new()).await
}

/// Submits a form and keeps the cookie of the response.
async fn submit(demo: &Demo, visitor: &Browser, path: &str, form: &str) -> Page {
    let target = format!("http://127.0.0.1:{}", demo.port()).parse().unwrap();
    let cookie = visitor.cookie().map_or_else(String::new, |value| format!("__Host-id={value}"));
    let request = Request::post(path)
        .header("content-type", "application/x-www-form-urlencoded")
        .header("cookie", cookie)
        .body(Body::full(form.to_owned()))
        .unwrap();
    let pool = Pool::new(target, Config::default());
    let response = pool.fetch(request, &Tasks::new(), 1 << 20, PATIENCE).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let page = Page { status: parts.status, headers: parts.headers, body };
    visitor.keep(&page);
    page
}

const PAGES: [&str; 10] = [
    "/account",
    "/values",
    "/message",
    "/lifetime",
    "/cookie",
    "/devices",
    "/parallel",
    "/own-site",
    "/",
    "/exchange",
];

#[tokio::test]
async fn serves_every_page_with_and_without_a_session() {
    let demo = start(0).unwrap();
    let visitor = visitor(&demo);
    for path in PAGES {
        assert_eq!(visitor.cookie().is_some(), path == "/exchange", "before {path}");
        let page = get(&visitor, path).await;
        assert_eq!(page.status, 200, "{path}");
        assert!(page.body.contains("id=session>"), "{path} has a footer");
        assert!(page.body.contains("id=received>"), "{path} shows the request's headers");
    }
    for path in PAGES {
        let page = get(&visitor, path).await;
        assert_eq!(page.status, 200, "{path}");
        assert!(page.body.contains("id=session-id>"), "{path} shows the session's id");
    }
    assert_eq!(get(&visitor, "/nothing").await.status, 404);
    assert_eq!(visitor.send("DELETE", "/", &[], &Script::new()).await.status, 405);
    assert!(demo.stop().await);
}

/// Nothing is inline or from elsewhere, so that the policy can forbid both.
#[tokio::test]
async fn pages_load_only_assets_of_the_site() {
    let demo = start(0).unwrap();
    let visitor = visitor(&demo);
    let page = get(&visitor, "/").await;
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for (path, media_type) in
        [("/demo.css", "text/css"), ("/demo.js", "text/javascript"), ("/favicon.svg", "image/svg")]
    {
        assert!(page.body.contains(&format!("'{path}'")), "{path}");
        let asset = get(&visitor, path).await;
        assert_eq!(asset.status, 200, "{path}");
        assert!(asset.header("content-type").unwrap().starts_with(media_type), "{path}");
    }
    assert!(!page.body.contains("<style") && !page.body.contains(" style="));
    assert!(!page.body.contains("src='http") && !page.body.contains("href='http"));
}

#[tokio::test]
async fn shows_received_headers_without_the_token() {
    let demo = start(0).unwrap();
    let page = get(&visitor(&demo), "/").await.body;
    let token = page.split("x-session-token</code></td><td class=json>").nth(1).unwrap();
    let token = token.split('<').next().unwrap();
    assert_eq!(token.chars().count(), 7, "{token} is cut");
    assert!(page.contains("x-session-url</code>"));
    assert!(!page.contains("<code>cookie</code>"), "the proxy removes its cookie");
}

/// Returns the texts of one language in a page.
fn snippets(page: &str, language: &str) -> Vec<String> {
    page.split(&format!("<code class={language}>"))
        .skip(1)
        .map(|rest| rest.split("</code></pre>").next().unwrap())
        .map(|html| html.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\""))
        .map(|html| html.replace("&#39;", "'").replace("&amp;", "&"))
        .collect()
}

/// The complete sites are run by `examples.rs`; the snippets must at least be valid code.
#[tokio::test]
async fn code_of_every_page_has_no_syntax_errors() {
    needs!("php", "python3", "node");
    let demo = start(0).unwrap();
    let visitor = visitor(&demo);
    let directory = tempfile::tempdir().unwrap();
    let python = "import ast, sys\nfor path in sys.argv[1:]: ast.parse(open(path).read(), path)";
    for (language, program, arguments, suffix) in [
        ("php", "php", &["-n", "-l"][..], "php"),
        ("python", "python3", &["-c", python], "py"),
        ("node", "node", &["--check"], "mjs"),
    ] {
        for path in PAGES {
            let code = snippets(&get(&visitor, path).await.body, language);
            assert_eq!(code.len(), 1, "{path} {language}");
            let opening = if language == "php" && path != "/own-site" { "<?php\n" } else { "" };
            let file = directory.path().join(format!("code.{suffix}"));
            std::fs::write(&file, format!("{opening}{}", code[0])).unwrap();
            let output = Command::new(program).args(arguments).arg(&file).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{path} {language}: {errors}");
        }
    }
}

#[tokio::test]
async fn forms_redirect_and_escape_what_they_got() {
    let demo = start(0).unwrap();
    let visitor = visitor(&demo);
    for (path, form, next) in [
        ("/values/set", "key=%3Cb%3E&value=%22%3Ci%3E%22", "/values"),
        ("/lifetime", "at=2099-11-20T11%3A03", "/lifetime"),
        ("/log-in", "name=%3Cu%3E", "/account"),
        ("/parallel", "", "/parallel"),
        ("/parallel/reset", "", "/parallel"),
    ] {
        let page = submit(&demo, &visitor, path, form).await;
        assert_eq!(page.status, StatusCode::SEE_OTHER, "{path}: {}", page.body);
        assert_eq!(page.header("location"), Some(next));
    }
    let values = get(&visitor, "/values").await.body;
    assert!(values.contains("&lt;b&gt;") && values.contains("&quot;&lt;i&gt;&quot;"));
    assert!(values.contains("id=principal>&lt;u&gt;<"));
    assert!(!values.contains("<b>") && !values.contains("<i>") && !values.contains("<u>"));
}

#[tokio::test]
async fn refusals_of_the_api_are_explained() {
    let demo = start(0).unwrap();
    let visitor = visitor(&demo);
    for (path, form, status, code) in [
        ("/values/set", "key=&value=1", 404, "not_found"),
        ("/lifetime", "idle=soon", 422, "invalid_expiry"),
        ("/lifetime", "at=", 422, "invalid_expiry"),
        ("/log-in", "name=", 422, "invalid_principal"),
        ("/cookie/rotate", "", 404, "no_such_session"),
    ] {
        let page = submit(&demo, &visitor, path, form).await;
        assert_eq!(page.status.as_u16(), status, "{path}: {}", page.body);
        assert!(page.body.contains(code) && page.body.contains("role=alert"), "{}", page.body);
        assert_eq!(visitor.cookie(), None, "{path} created no session");
    }
    let page = submit(&demo, &visitor, "/message", &format!("text={}", "a".repeat(20_000))).await;
    assert_eq!(page.status, 400);
}

#[tokio::test]
async fn two_demos_use_different_ports() {
    let demos = [(); 2].map(|()| Demo::start(Options::default()).unwrap());
    assert_ne!(demos[0].port(), demos[1].port());
    for demo in demos {
        assert_eq!(demo.url(), format!("http://localhost:{}/", demo.port()));
        assert!(demo.instructions().contains(&demo.url()));
        assert_eq!(get(&visitor(&demo), "/").await.status, 200);
        assert!(demo.stop().await);
    }
}

#[tokio::test]
async fn a_taken_port_is_an_error_if_requested() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = start(taken.local_addr().unwrap().port()).unwrap_err();
    assert!(matches!(error, Error::Start(_)), "{error}");
}
