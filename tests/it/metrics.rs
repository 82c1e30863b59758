//! The metrics that a fresh program exposes, against their reference.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{Authority, Browser, Cloakroom, Script, Upstream};

/// A metric: its type, and the values of each of its labels.
#[derive(Debug, Default, PartialEq, Eq)]
struct Family {
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

type Families = BTreeMap<String, Family>;

/// Parses the text format, without the parts of histograms: the name of a counter is that of its samples.
fn exposed(text: &str) -> Families {
    let mut families = Families::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            current = format!("{name}{suffix}");
            kind.clone_into(&mut families.entry(current.clone()).or_default().kind);
        } else if !line.starts_with('#') {
            let (_, rest) = line.split_once('{').unwrap_or((line, "}"));
            let (labels, _) = rest.rsplit_once('}').unwrap();
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (name, value) = label.split_once('=').unwrap();
                if name != "le" {
                    let labels = &mut families.get_mut(&current).unwrap().labels;
                    let value = value.trim_matches('"').to_owned();
                    labels.entry(name.to_owned()).or_default().insert(value);
                }
            }
        }
    }
    families
}

/// Parses the tables of the reference: `name`, type, labels and meaning. A label whose values are open has none.
fn documented(text: &str) -> Families {
    let code = |text: &str| -> Vec<String> {
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let row = |line: &str| {
        let cells: Vec<_> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let [name, kind, labels, meaning, _] = cells[..] else { return None };
        let name = code(name).pop()?;
        assert!(!meaning.is_empty(), "{name} has no meaning");
        let labels = labels.split(';').map(code).filter(|label| !label.is_empty());
        let labels = labels.map(|mut label| (label.remove(0), label.into_iter().collect()));
        Some((name, Family { kind: kind.to_owned(), labels: labels.collect() }))
    };
    text.lines().filter_map(row).collect()
}

#[tokio::test]
async fn fresh_program_exposes_what_the_reference_lists() {
    let (upstream, authority) = (Upstream::start(), Authority::new());
    let identity = authority.of(&["localhost"]);
    let toml = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\ntls = [{{ certificate = \"{}\", key = \"{}\" }}]\n",
        identity.certificate.display(),
        identity.key.display()
    );
    let proxy = Cloakroom::with(&upstream, &toml).await;
    let (_, text) = proxy.admin_get("/metrics").await;
    let reference = documented(include_str!("../../docs/reference/metrics.md"));
    let mut exposed = exposed(&text);
    for (name, family) in &mut exposed {
        for (label, values) in &mut family.labels {
            let open = reference
                .get(name)
                .and_then(|family| family.labels.get(label))
                .is_some_and(BTreeSet::is_empty);
            assert!(!values.is_empty());
            if open {
                values.clear();
            }
        }
    }
    for name in exposed.keys().chain(reference.keys()).collect::<BTreeSet<_>>() {
        assert_eq!(exposed.get(name), reference.get(name), "{name}: exposed, and in the reference");
    }
}

#[tokio::test]
async fn names_follow_the_conventions_of_prometheus() {
    let proxy = Cloakroom::start(&Upstream::start()).await;
    let (_, text) = proxy.admin_get("/metrics").await;
    let snake_case =
        |text: &str| text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    for (name, family) in exposed(&text) {
        assert!(name.starts_with("cloakroom_") || name.starts_with("process_"), "{name}");
        assert!(snake_case(&name), "{name}");
        for (label, values) in &family.labels {
            assert!(snake_case(label), "{name} {label}");
            if matches!(&**label, "outcome" | "event" | "reason" | "operation" | "end") {
                assert!(values.iter().all(|value| snake_case(value)), "{name} {values:?}");
            }
        }
    }
    let help = text.lines().filter(|line| line.starts_with("# HELP ")).count();
    assert_eq!(help, text.lines().filter(|line| line.starts_with("# TYPE ")).count());
}

/// The value of a series without labels, or with these.
fn value(text: &str, series: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{series} is not in\n{text}")).parse().unwrap()
}

#[tokio::test]
async fn durations_are_observed_for_requests_and_upstreams() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::start(&upstream).await;
    Browser::new(&proxy).navigate("/", &Script::new()).await;
    let text = proxy.metrics().text();
    let requests = "cloakroom_request_duration_seconds_count{code=\"2xx\"}";
    assert!((value(&text, requests) - 1.0).abs() < f64::EPSILON);
    let upstream = format!(
        "cloakroom_upstream_request_duration_seconds_count{{upstream=\"{}\"}}",
        upstream.url()
    );
    assert!((value(&text, &upstream) - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn process_metrics_are_plausible() {
    let proxy = Cloakroom::start(&Upstream::start()).await;
    let (_, text) = proxy.admin_get("/metrics").await;
    let now = cloakroom::time::Clock::System.now().as_millis() / 1000;
    let started = value(&text, "process_start_time_seconds");
    let age = f64::from(u32::try_from(now).unwrap()) - started;
    assert!((-2.0..3600.0).contains(&age), "{age}");
    assert!(value(&text, "process_cpu_seconds_total") < 3600.0);
    assert!(value(&text, "process_resident_memory_bytes") > 1_000_000.0);
    let open = value(&text, "process_open_fds");
    assert!(open > 3.0 && open <= value(&text, "process_max_fds"), "{open}");
}
