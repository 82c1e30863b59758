//! The rules of a route apply to every path that a server may read as one of that route.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use cloakroom::proxy::route::{Matcher, RouteMatch};

use crate::support::raw::{exchange, read_until};
use crate::support::{Cloakroom, Echo, Upstream, needs, socket};

const ROUTES: &str = "[[route]]\nupstream = \"UPSTREAM\"\n\
    [[route]]\npath = \"/admin\"\nupstream = \"UPSTREAM\"\nrequire_principal = \"/login\"\n\
    [[route]]\npath = \"/upload\"\nupstream = \"UPSTREAM\"\nmax_body = 4\n\
    [[route]]\npath = \"/static\"\nupstream = \"UPSTREAM\"\nsession = \"off\"\n";

/// Spellings of a path below `/admin`, for different servers; `admin` is replaced by other routes.
const SPELLINGS: [&str; 17] = [
    "/ADMIN",
    "/Admin/users",
    "//x/admin",
    "//x/ADMIN/users",
    "///x/admin",
    "/\\x/admin",
    "/x\\..\\admin",
    "/%61dmin",
    "/%2561dmin",
    "/%252561dmin",
    "/x/../admin",
    "/x/%2e%2e/admin",
    "/x/..;a=b/admin",
    "/admin;x=y/users",
    "//admin",
    "/admin%2fusers%2f%252e%252e%2f%252e%252e",
    "/x/%25252525",
];

async fn status(cloakroom: &Cloakroom, request: &str) -> String {
    let answer = exchange(cloakroom.public(), request).await;
    answer.get(9..12).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn no_spelling_bypasses_route_rules() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, ROUTES).await;
    for route in ["admin", "upload", "static"] {
        let (first, rest) = route.split_at(1);
        for spelling in SPELLINGS {
            let path = spelling
                .replace("admin", route)
                .replace("ADMIN", &route.to_uppercase())
                .replace("Admin", &format!("{}{rest}", first.to_uppercase()))
                .replace("61dmin", &format!("{:02x}{rest}", first.as_bytes()[0]));
            let request = format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
            );
            assert_eq!(status(&cloakroom, &request).await, "400", "{path}");
        }
    }
    assert_eq!(upstream.seen().len(), 0);
    // Paths that every server reads alike are forwarded.
    for (path, expected) in [
        ("/admin/x%2fy;z", "401"),
        ("/x//y/%2e/z;a=b\\c%20%252f", "200"),
        ("/https%3A%2F%2Fother.example%2Fadmin", "200"),
        ("/static//x;y", "200"),
        ("/administration", "200"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&cloakroom, &request).await, expected, "{path}");
    }
}

#[tokio::test]
async fn single_route_forwards_every_path() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, "").await;
    for path in SPELLINGS.into_iter().chain(["/%2525252525", "/..%2f..%2f"]) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&cloakroom, &request).await, "200", "{path}");
        assert_eq!(upstream.seen().pop().unwrap().target, path);
    }
}

#[tokio::test]
async fn route_rules_apply_to_websockets() {
    let echo = Echo::start().await;
    let upstream = format!("upstream = \"http://{}\"", echo.address);
    let toml = format!(
        "[[route]]\n{upstream}\n[[route]]\npath = \"/members\"\n{upstream}\nrequire_principal = \"/login\"\n"
    );
    let cloakroom = Cloakroom::with(&Upstream::start(), &toml).await;
    for path in ["/members", "/MEMBERS", "//x/members", "/%6dembers/chat"] {
        assert!(socket(cloakroom.public(), path, &[]).await.is_err(), "{path}");
    }
    assert_eq!(echo.seen().len(), 0);
    let mut open = socket(cloakroom.public(), "/chat//x", &[]).await.unwrap();
    assert!(open.echoes("hello").await);
}

#[tokio::test]
async fn login_redirect_stays_on_the_site() {
    let toml = "[[route]]\nupstream = \"UPSTREAM\"\nrequire_principal = \"/login?next={path}\"\n";
    let cloakroom = Cloakroom::with(&Upstream::start(), toml).await;
    for (path, next) in [
        ("//evil.test/a", "%2Fevil%2Etest%2Fa"),
        ("/\\evil.test", "%2Fevil%2Etest"),
        ("/a", "%2Fa"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n");
        let mut connection = tokio::net::TcpStream::connect(cloakroom.public()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut connection, request.as_bytes()).await.unwrap();
        let head = read_until(&mut connection, "\r\n\r\n").await;
        assert!(head.contains(&format!("location: /login?next={next}\r\n")), "{path}: {head}");
    }
}

/// The routes of the server models, the longest first.
const MODEL_ROUTES: [&str; 4] = ["/admin/users", "/public", "/admin", "/"];

/// Returns a fixed pseudorandom list of paths from parts that servers read differently.
fn paths() -> Vec<String> {
    const PIECES: [&str; 34] = [
        "/",
        "/",
        "/",
        "//",
        "\\",
        "/admin",
        "/admin",
        "/ADMIN",
        "/users",
        "/public",
        "/public",
        "/x",
        "x",
        "admin",
        "/..",
        "/.",
        "/%2e%2e",
        "/%2E.",
        "/..;a",
        ";a=b",
        ";",
        "%2f",
        "%2F..",
        "%5c",
        "%61dmin",
        "%2561dmin",
        "%252e%252e",
        "%252f",
        "%3f",
        "%23",
        "%00",
        "%25252e",
        "@x",
        "/x%2fy",
    ];
    let mut state = 1_u64;
    let mut next = move |below: usize| {
        // Knuth's linear congruential generator for MMIX.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut paths: Vec<String> = SPELLINGS.iter().map(|path| (*path).to_owned()).collect();
    for _ in 0..20_000 {
        let pieces = 1 + next(6);
        let tail: String = (0..pieces).map(|_| PIECES[next(PIECES.len())]).collect();
        paths.push(format!("/{}", tail.strip_prefix('/').unwrap_or(&tail)));
    }
    paths
}

/// Returns the reading of each path by each model of a program; `None` if the program is missing.
fn readings(program: &str, arguments: &[&str], paths: &[String]) -> Models {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readings"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = serde_json::to_string(paths).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

type Models = HashMap<String, Vec<Option<String>>>;

/// Returns the index of the route that a server's own router would select.
fn route_of(reading: &str) -> usize {
    let covers = |route: &str| {
        let rest = reading.strip_prefix(route.trim_end_matches('/'));
        route == "/" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    MODEL_ROUTES.iter().position(|route| covers(route)).unwrap()
}

#[test]
fn real_servers_agree_on_the_route() {
    needs!("node", "php", "python3");
    let matcher = Matcher::new(MODEL_ROUTES.map(|path| (None, path.to_owned())));
    let paths = paths();
    let routes = serde_json::to_string(&MODEL_ROUTES).unwrap();
    let mut models = readings("node", &["paths.mjs", &routes], &paths);
    models.extend(readings("php", &["-n", "paths.php"], &paths));
    models.extend(readings("python3", &["paths.py"], &paths));
    assert_eq!(models.len(), 19);
    let found: Vec<RouteMatch> = paths.iter().map(|path| matcher.find("x", path)).collect();
    let mut compared = 0;
    for (model, readings) in &models {
        assert_eq!(readings.len(), paths.len(), "{model}");
        for ((path, found), reading) in paths.iter().zip(&found).zip(readings) {
            let (RouteMatch::Route(route), Some(reading)) = (found, reading) else { continue };
            assert_eq!(route_of(reading), *route, "{model}: {path} -> {reading}");
            compared += 1;
        }
    }
    let forwarded = found.iter().filter(|found| matches!(found, RouteMatch::Route(_))).count();
    assert!((1000..paths.len() - 1000).contains(&forwarded), "{forwarded} of {}", paths.len());
    assert!(compared > 15_000, "{compared}");
}
