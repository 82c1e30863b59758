//! Tests of the configuration as a whole; single rules are in `tests/config`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

use super::*;
use crate::secret::Secret;
use crate::session::id::Id;
use crate::session::token::CookieToken;

const EXAMPLE: &str = include_str!("../../config.example.toml");

fn environment() -> Environment {
    Environment::from([("STATE_DIRECTORY", "/state")])
}

fn load_text(text: &str, environment: &Environment) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    fs::write(&path, text).unwrap();
    load(Some(&path), environment, &Overrides::default())
}

fn load_nothing(overrides: &Overrides) -> Result<Loaded, ConfigError> {
    load(None, &environment(), overrides)
}

fn upstream() -> Overrides {
    Overrides { upstream: Some("http://127.0.0.1:3000".to_owned()), listen: None }
}

#[test]
fn example_equals_the_defaults() {
    let example = load_text(EXAMPLE, &environment()).unwrap();
    let defaults = load_nothing(&upstream()).unwrap();
    assert_eq!(format!("{:?}", example.config), format!("{:?}", defaults.config));
    assert_eq!(example.warnings, []);
    assert_eq!(defaults.warnings, []);
}

#[test]
fn defaults_equal_those_of_the_modules() {
    let config = load_nothing(&upstream()).unwrap().config;
    assert_eq!(config.policy, Policy::default());
    assert_eq!(config.cookie, Attributes::default());
    assert_eq!(format!("{:?}", config.limits), format!("{:?}", server::Limits::default()));
    assert_eq!(config.log, log::Config::default());
    assert_eq!(config.api.url, "http://127.0.0.1:8081/_session");
    assert_eq!(config.state_directory.as_deref(), Some(Path::new("/state")));
    assert!(
        matches!(config.keys, Keys::BesideData(path) if path == Path::new("/state/auto-session-key"))
    );
}

/// The text of each section of the example.
fn sections() -> Vec<(&'static str, String)> {
    let mut sections: Vec<(&str, String)> = Vec::new();
    for line in EXAMPLE.lines() {
        let head = line.split_once(']').map(|(head, _)| head.trim_start_matches('['));
        match head.filter(|_| line.starts_with('[')) {
            Some(head) => sections.push((head, format!("{line}\n"))),
            None => {
                if let Some((_, text)) = sections.last_mut() {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
    }
    sections
}

/// The key of a line, commented out or not.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.trim_start_matches('#').split_once(" = ")?;
    key.bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        .then_some(key)
}

/// The keys of a section, from the schema.
fn known_keys(name: &str) -> Vec<&'static str> {
    let schema = &read::section(&read::SCHEMA).unwrap()[name];
    let keys = read::section(read::array_of_tables(schema).unwrap_or(schema)).unwrap();
    keys.keys().map(String::as_str).collect()
}

#[test]
fn example_mentions_every_key() {
    let names: Vec<&str> = sections().iter().map(|(name, _)| *name).collect();
    let sections_of_schema = read::section(&read::SCHEMA).unwrap();
    assert!(sections_of_schema.keys().all(|name| names.contains(&name.as_str())), "{names:?}");
    for (name, text) in sections() {
        let mut mentioned: Vec<&str> = text.lines().filter_map(key_of).collect();
        let mut known = known_keys(name);
        mentioned.sort_unstable();
        known.sort_unstable();
        assert_eq!(mentioned, known, "[{name}]");
    }
}

/// The commented-out keys of the example have a value of their type; rules between keys may refuse it.
#[test]
fn commented_keys_of_the_example_are_valid() {
    for (name, text) in sections() {
        let head = text.lines().next().unwrap();
        for line in text.lines().filter(|line| line.starts_with('#') && key_of(line).is_some()) {
            let text = format!("{head}\n{}", line.trim_start_matches('#'));
            let mut problems = Problems::default();
            read::read(&SourceText::new("example", &text), &text, &[], &mut problems).unwrap();
            assert_eq!(problems.errors, [], "[{name}] {line}");
        }
    }
}

#[test]
fn effective_configuration_is_read_back() {
    let full = r#"
        [[listen]]
        address = "unix:/run/public.sock"
        socket_mode = "0660"
        [limits]
        trusted_proxies = ["10.0.0.0/8", "::1"]
        header_bytes = 10000
        [session]
        absolute_timeout = "36h"
        touch = "write"
        [cookie]
        domain = ".Example.org"
        same_site = "Strict"
        [store]
        url = "memory:"
        timeout = "1500ms"
        [telemetry]
        otlp_url = "https://collector/otlp/"
        service_name = "shop"
        sample_ratio = 0.25
        [log]
        level = "warn"
        format = "json"
        [[route]]
        host = "*.Example.org"
        path = "/a/"
        upstream = "unix:/run/\"app\".sock"
        header_exchange = true
        principal_header = "X-Remote-User"
        session = "no-touch"
        on_error = "anonymous"
        [[route]]
        upstream = "http://[::1]:3000"
    "#;
    let first = load_text(full, &environment()).unwrap();
    let shown = first.to_toml();
    let second = load_text(&shown, &environment()).unwrap();
    assert_eq!(format!("{:?}", first.config), format!("{:?}", second.config), "{shown}");
    assert_eq!(second.to_toml(), shown);
    assert_eq!(second.config.cookie.name, "id");
}

#[test]
fn no_secret_is_shown() {
    let key = generate_key();
    let text = format!(
        r#"
        session.keys = ["{}"]
        api.service_token = "hunter2-hunter2-hunter2"
        api.client_secret = "hunter2-hunter2-hunter2-hunter2-hunter2"
        store.url = "redis://me:hunter2@db:6379/1"
        telemetry.otlp_url = "http://collector"
        telemetry.otlp_headers = {{ authorization = "hunter2" }}
        [[route]]
        upstream = "http://app:3000"
        request_headers = {{ X-From-Proxy = "hunter2" }}
        "#,
        key.reveal()
    );
    let loaded = load_text(&text, &Environment::default()).unwrap();
    let shown = format!("{}{:?}{:?}", loaded.to_toml(), loaded.config, loaded.warnings);
    assert!(!shown.contains("hunter2") && !shown.contains(key.reveal()), "{shown}");
    assert_eq!(shown.matches("[hidden]").count(), 6, "{shown}");
    let keys: Vec<&str> = loaded.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "session.keys",
            "api.service_token",
            "api.client_secret",
            "store.url",
            "telemetry.otlp_headers.authorization",
            "route.request_headers.X-From-Proxy"
        ]
    );
    DeTable::parse(&loaded.to_toml()).unwrap();
}

#[test]
fn environment_overrides_file_and_arguments_both() {
    let environment = Environment::from([
        ("CLOAKROOM_UPSTREAM", "http://env:1"),
        ("CLOAKROOM_LISTEN_ADDRESS", "127.0.0.1:1"),
        ("CLOAKROOM_SESSION_IDLE_TIMEOUT", "1h"),
        ("CLOAKROOM_SESSION_MAX_VALUES", "7"),
        ("CLOAKROOM_COOKIE_SECURE", "false"),
        ("CLOAKROOM_LIMITS_TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
        ("CLOAKROOM_STORE_URL", "memory:"),
        ("CLOAKROOM_LOG_LEVEL", "debug"),
        ("CLOAKROOM_API_SERVICE_TOKEN", "a-token-of-the-environment"),
        ("CLOAKROOM_ROUTE_ONE_AT_A_TIME", "head"),
        ("CLOAKROOM_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("CLOAKROOM_CLIENT_SECRETS", "old:new"),
        ("OTHER", "x"),
    ]);
    let file = "[session]\nidle_timeout = \"2h\"\n[[route]]\nupstream = \"http://file:1\"\n";
    let loaded = load_text(file, &environment).unwrap();
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    assert_eq!(config.policy.idle_timeout.as_secs(), 3600);
    assert_eq!(config.policy.max_values, 7);
    assert_eq!(config.cookie.name, "id");
    assert_eq!(config.proxy.trusted_proxies.len(), 2);
    assert_eq!(config.log.level, tracing::level_filters::LevelFilter::DEBUG);
    assert!(config.api.service_token.is_some());
    assert_eq!(config.proxy.routes[0].one_at_a_time, Some(Duration::from_secs(30)));
    assert_eq!(config.listen[0].address.to_string(), "127.0.0.1:1");
    assert_eq!(config.proxy.routes[0].upstreams[0].to_string(), "http://env:1");
    let overrides = Overrides {
        upstream: Some("http://argument:1".to_owned()),
        listen: Some("127.0.0.1:2".to_owned()),
    };
    let config = load(None, &environment, &overrides).unwrap().config;
    assert_eq!(config.listen[0].address.to_string(), "127.0.0.1:2");
    assert_eq!(config.proxy.routes[0].upstreams[0].to_string(), "http://argument:1");
}

/// Variables that Kubernetes sets in every pod for a service, with `enableServiceLinks`.
#[test]
fn kubernetes_service_links_are_ignored() {
    for service in ["", "_API", "_ADMIN", "_STORE", "_REDIS_MASTER", "_PORT_80", "_SESSION_KEYS"] {
        for (ip, at) in [("10.0.0.1", "10.0.0.1"), ("fd00::1", "[fd00::1]")] {
            let url = format!("tcp://{at}:8081");
            let links = [
                ("SERVICE_HOST", ip),
                ("SERVICE_PORT", "8081"),
                ("SERVICE_PORT_HTTP_API", "8081"),
                ("PORT", &url),
                ("PORT_8081_TCP", &url),
                ("PORT_8081_TCP_PROTO", "tcp"),
                ("PORT_8081_TCP_PORT", "8081"),
                ("PORT_8081_TCP_ADDR", ip),
                ("PORT_53_UDP_PROTO", "udp"),
            ];
            for (name, value) in links {
                let name = format!("CLOAKROOM{service}_{name}");
                let environment = Environment::from([("HOME", "/h"), (&*name, value)]);
                let loaded = load(None, &environment, &upstream());
                assert!(loaded.is_ok(), "{name}={value}: {}", loaded.unwrap_err());
            }
        }
    }
    for (name, value) in [
        ("CLOAKROOM_API_PORT", "8081"),
        ("CLOAKROOM_API_PORT", "http://10.0.0.1:8081"),
        ("CLOAKROOM_API_ADRESS", "tcp://10.0.0.1:8081"),
        ("CLOAKROOM_API_SERVICE_HOST", "api.internal"),
        ("CLOAKROOM_API_SERVICE_TOKN", "8081"),
        ("CLOAKROOM_PORT_8081_HTTP", "tcp://10.0.0.1:8081"),
    ] {
        let environment = Environment::from([("HOME", "/h"), (name, value)]);
        assert!(load(None, &environment, &upstream()).is_err(), "{name}={value}");
    }
}

fn check_variable(file: &str, (variable, value): (&str, &str), expected: &str) {
    let environment = Environment::from([("HOME", "/home/me"), (variable, value)]);
    let error = load_text(file, &environment).unwrap_err().to_string();
    assert!(error.starts_with(variable) && error.contains(expected), "{error}");
}

#[test]
fn wrong_variables_are_named() {
    let file = "[[route]]\nupstream = \"http://a:1\"\n";
    for (name, value, expected) in [
        ("CLOAKROOM_SESION_IDLE_TIMEOUT", "1h", "did you mean CLOAKROOM_SESSION_IDLE_TIMEOUT?"),
        ("CLOAKROOM_STORE", "x", "expected CLOAKROOM_<SECTION>_<KEY>"),
        ("CLOAKROOM_UPSTREM", "x", "did you mean CLOAKROOM_UPSTREAM?"),
        (
            "CLOAKROOM_SESSION_IDLE_TIMEOUT",
            "soon",
            "session.idle_timeout: invalid duration \"soon\"; expected",
        ),
        ("CLOAKROOM_LISTEN_TLS", "x", "listen.tls: is a table; set it in the file"),
        ("CLOAKROOM_ROUTE_REQUEST_HEADERS", "x", "is a table; set it in the file"),
        ("CLOAKROOM_API_SERVICE_TOKEN", "", "the secret is empty"),
    ] {
        check_variable(file, (name, value), expected);
    }
}

#[test]
fn variables_need_a_single_section() {
    let file = "[[route]]\nupstream = \"http://a:1\"\n\
                [[route]]\npath = \"/b\"\nupstream = \"http://b:1\"\n";
    let variable = ("CLOAKROOM_UPSTREAM", "http://c:1");
    check_variable(file, variable, "route.upstream: the file has 2 of this section");
}

#[test]
fn two_variables_for_a_key_conflict() {
    let environment = Environment::from([
        ("HOME", "/home/me"),
        ("CLOAKROOM_UPSTREAM", "http://a:1"),
        ("CLOAKROOM_ROUTE_UPSTREAM", "http://b:1"),
    ]);
    let error = load(None, &environment, &Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("remove one"), "{error}");
}

#[test]
fn secrets_may_use_any_variable() {
    let file = "[api]\nservice_token = { env = \"CLOAKROOM_TOKEN\" }\n\
                [[route]]\nupstream = \"http://a:1\"\n";
    let environment =
        Environment::from([("HOME", "/h"), ("CLOAKROOM_TOKEN", "sixteen-characters")]);
    let config = load_text(file, &environment).unwrap().config;
    assert!(config.api.service_token.unwrap().matches(b"sixteen-characters"));
}

#[test]
fn an_upstream_is_required() {
    let error = load_nothing(&Overrides::default()).unwrap_err().to_string();
    assert!(error.starts_with("route: ") && error.contains("--upstream"), "{error}");
    let wrong = Overrides { upstream: Some("ftp://a".to_owned()), listen: None };
    let error = load_nothing(&wrong).unwrap_err().to_string();
    assert!(error.starts_with("--upstream: route.upstream: invalid upstream"), "{error}");
}

#[test]
fn relative_paths_need_a_state_directory() {
    let error = load(None, &Environment::default(), &upstream()).unwrap_err().to_string();
    assert!(error.starts_with("store.url: ") && error.contains("STATE_DIRECTORY"), "{error}");
}

#[test]
fn embedded_stores_create_a_key_once() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().to_str().unwrap();
    let environment = Environment::from([("XDG_STATE_HOME", home)]);
    let config = load(None, &environment, &upstream()).unwrap().config;
    let key = directory.path().join("cloakroom/auto-session-key");
    assert!(!key.exists(), "loading changes nothing");
    config.prepare().unwrap();
    let text = fs::read_to_string(&key).unwrap();
    config.prepare().unwrap();
    assert_eq!(fs::read_to_string(&key).unwrap(), text);
}

/// Earlier releases generated `session-key`.
#[test]
fn older_key_file_stays_in_use() {
    for store in ["sqlite:cloakroom.db", "file:sessions"] {
        let state = tempfile::tempdir().unwrap();
        let old = state.path().join("session-key");
        fs::write(&old, format!("{}\n", generate_key().reveal())).unwrap();
        let environment = Environment::from([
            ("STATE_DIRECTORY", state.path().to_str().unwrap()),
            ("CLOAKROOM_STORE_URL", store),
        ]);
        for _ in 0..2 {
            let config = load(None, &environment, &upstream()).unwrap().config;
            assert!(matches!(&config.keys, Keys::BesideData(path) if *path == old), "{store}");
            config.prepare().unwrap();
        }
        assert!(!state.path().join("auto-session-key").exists());
    }
}

#[test]
fn generated_key_outranks_other_files() {
    let state = tempfile::tempdir().unwrap();
    let environment = Environment::from([("STATE_DIRECTORY", state.path().to_str().unwrap())]);
    load(None, &environment, &upstream()).unwrap().config.prepare().unwrap();
    fs::write(state.path().join("session-key"), generate_key().reveal()).unwrap();
    let config = load(None, &environment, &upstream()).unwrap().config;
    let auto = state.path().join("auto-session-key");
    assert!(matches!(config.keys, Keys::BesideData(path) if path == auto));
}

#[test]
fn key_files_are_next_to_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let (beside, state) = (directory.path().join("etc"), directory.path().join("state"));
    fs::create_dir(&beside).unwrap();
    fs::create_dir(&state).unwrap();
    let (one, other) = (generate_key(), generate_key());
    let path = beside.join("config.toml");
    let file = "[session]\nkeys = [{ file = \"session-key\" }]\n[store]\nurl = \"redis://db\"\n\
                [[route]]\nupstream = \"http://a:1\"\n";
    fs::write(&path, file).unwrap();
    let environment = Environment::from([("STATE_DIRECTORY", state.to_str().unwrap())]);
    let signs = |key: &Secret| {
        let loaded = load(Some(&path), &environment, &Overrides::default()).unwrap();
        let Keys::Given(ring) = &loaded.config.keys else { panic!("no key was read") };
        let expected = KeyRing::new(&keys::parse(key).unwrap(), &[]);
        let token =
            CookieToken { id: Id::from_bytes([7; 16]), generation: 1 }.sign(&expected, "id");
        assert!(CookieToken::verify(ring, "id", token.reveal().as_bytes()).is_some());
        loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let error = load(Some(&path), &environment, &Overrides::default()).unwrap_err().to_string();
    assert!(error.contains("etc/session-key does not exist"), "{error}");
    assert!(error.contains("state has none") && error.lines().count() == 1, "{error}");

    fs::write(state.join("session-key"), other.reveal()).unwrap();
    let warnings = signs(&other);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("state/session-key is used instead"), "{warnings:?}");

    fs::write(beside.join("session-key"), one.reveal()).unwrap();
    let warnings = signs(&one);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("state/session-key differs and is not used"), "{warnings:?}");

    fs::write(state.join("session-key"), one.reveal()).unwrap();
    assert!(signs(&one).is_empty());
    fs::remove_file(state.join("session-key")).unwrap();
    assert!(signs(&one).is_empty());
}

#[test]
fn relative_paths_are_resolved() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(directory.path().join("key"), generate_key().reveal()).unwrap();
    fs::write(directory.path().join("token"), "a-token-beside-the-file\n").unwrap();
    let path = directory.path().join("config.toml");
    let file = r#"
        [session]
        keys = [{ file = "key" }]
        [api]
        service_token = { file = "token" }
        address = "unix:api.sock"
        [[route]]
        upstream = "unix:app.sock"
    "#;
    fs::write(&path, file).unwrap();
    let environment = Environment::from([("STATE_DIRECTORY", state.to_str().unwrap())]);
    let config = load(Some(&path), &environment, &Overrides::default()).unwrap().config;
    let beside = |name: &str| directory.path().join(name);
    assert!(matches!(config.keys, Keys::Given(_)));
    assert!(config.api.service_token.unwrap().matches(b"a-token-beside-the-file"));
    assert_eq!(config.api.address, server::Address::Unix(beside("api.sock")));
    assert_eq!(
        config.proxy.routes[0].upstreams[0],
        crate::client::Target::Unix(beside("app.sock"))
    );
    assert!(config.api.url.ends_with("%2Fapi.sock/_session"), "{}", config.api.url);
}

#[test]
fn all_problems_are_reported() {
    let file = "[session]\nidle_timeot = \"1h\"\nmax_values = \"many\"\n[cookie]\nsecure = false\n\
                name = \"__Host-x\"\n[[route]]\nupstream = \"http://a:1\"\n";
    let error = load_text(file, &environment()).unwrap_err();
    let lines: Vec<String> = error
        .problems
        .iter()
        .map(|problem| problem.to_string().rsplit("config.toml:").next().unwrap().to_owned())
        .collect();
    assert_eq!(
        lines,
        [
            "2:1: session.idle_timeot: unknown key; did you mean `idle_timeout`?",
            "3:1: session.max_values: invalid type: string \"many\", expected a whole number, e.g. 100",
            "6:1: cookie.name: __Host- requires secure = true; choose a name without the prefix",
        ]
    );
}

#[test]
fn collector_keys_are_checked() {
    for (lines, wrong) in [
        (
            "service_name = \"shop\"",
            "has no effect without a collector; set telemetry.otlp_url too",
        ),
        ("otlp_headers = { a = \"b\" }", "has no effect without a collector"),
        ("otlp_url = \"collector:4318\"", "invalid URL of a collector; expected its base URL"),
        ("otlp_url = \"http://127.0.0.1:8080\"", "is this proxy itself (listen.address)"),
        ("otlp_url = \"http://a\"\ntls = { verify = false }", "the collector has no TLS"),
        ("otlp_url = \"http://a\"\nsample_ratio = 1.5", "expected a number from 0 to 1"),
        ("otlp_url = \"http://a\"\notlp_headers = { Host = \"b\" }", "writes or keeps"),
    ] {
        let text = format!("[telemetry]\n{lines}\n[[route]]\nupstream = \"http://a:1\"\n");
        let error = load_text(&text, &environment()).unwrap_err().to_string();
        assert!(error.contains(wrong), "{lines}: {error}");
    }
    let text = "[telemetry]\notlp_url = \"http://a\"\nsample_ratio = 0\n";
    let variable = Environment::from([
        ("STATE_DIRECTORY", "/state"),
        ("CLOAKROOM_UPSTREAM", "http://a:1"),
        ("CLOAKROOM_TELEMETRY_OTLP_URL", "http://b/"),
        ("CLOAKROOM_TELEMETRY_SAMPLE_RATIO", "0.5"),
    ]);
    let telemetry = load_text(text, &variable).unwrap().config.telemetry.unwrap();
    assert_eq!(
        (telemetry.collector.to_string().as_str(), telemetry.sample_ratio),
        ("http://b", 0.5)
    );
}
