//! Spans at a collector, decoded as the official OpenTelemetry messages.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;

use crate::support::raw::exchange;
use crate::support::{Browser, Cloakroom, Fault, FaultProxy, Script, Upstream, until};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Starts a proxy that exports to `collector`.
async fn proxy_with(upstream: &Upstream, collector: &str, more: &str) -> Cloakroom {
    let toml = format!("[telemetry]\notlp_url = \"{collector}/otlp\"\n{more}");
    Cloakroom::with(upstream, &toml).await
}

/// Returns all spans that a collector has received, with the attributes of their resource.
fn received(collector: &Upstream) -> Vec<(Vec<KeyValue>, Span)> {
    let mut received = Vec::new();
    for seen in collector.seen() {
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/otlp/v1/traces"));
        assert!(seen.whole && has(&seen.headers, "content-type", "application/json"));
        let message: ExportTraceServiceRequest = serde_json::from_str(&seen.body).unwrap();
        for of_resource in message.resource_spans {
            let resource = of_resource.resource.unwrap().attributes;
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            received.extend(spans.map(|span| (resource.clone(), span)));
        }
    }
    received
}

fn has(headers: &[(String, String)], name: &str, value: &str) -> bool {
    headers.iter().any(|(known, line)| known == name && line == value)
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key} is {other:?}"),
    }
}

#[tokio::test]
async fn collector_receives_a_span_of_each_request() {
    let (upstream, collector) = (Upstream::start(), Upstream::start());
    let more = "service_name = \"shop\"\notlp_headers = { authorization = \"Bearer hunter2\" }\n\
                [limits]\ntrusted_proxies = [\"127.0.0.1\"]\n";
    let proxy = proxy_with(&upstream, &collector.url(), more).await;
    let page = format!(
        "GET /page?secret=hunter2 HTTP/1.1\r\nHost: shop.example.org:8080\r\nX-Forwarded-For: 192.0.2.1\r\n\
         X-Forwarded-Proto: https\r\ntraceparent: {TRACEPARENT}\r\ntracestate: a=b\r\nConnection: close\r\n\r\n"
    );
    assert!(exchange(proxy.public(), &page).await.starts_with("HTTP/1.1 200"));
    let seen = upstream.take_seen().pop().unwrap();
    let header = |name| seen.headers.iter().find(|(known, _)| known == name).unwrap().1.clone();
    assert_eq!(header("tracestate"), "a=b");
    let began = proxy.now().as_millis();
    assert!(proxy.stop().await);

    let [(resource, span)] = &received(&collector)[..] else { panic!("one span") };
    assert_eq!(attribute(resource, "service.name").as_deref(), Some("shop"));
    assert_eq!(span.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(span.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    let id = u64::from_be_bytes(span.span_id.clone().try_into().unwrap());
    let ours = format!("00-0af7651916cd43dd8448eb211c80319c-{id:016x}-01");
    assert_eq!(header("traceparent"), ours, "the upstream's parent is ours");
    assert_eq!((span.name.as_str(), span.kind), ("GET", 2));
    assert_eq!(i64::try_from(span.start_time_unix_nano).unwrap() / 1_000_000, began);
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    for (key, value) in [
        ("http.request.method", Some("GET")),
        ("url.path", Some("/page")),
        ("url.scheme", Some("https")),
        ("server.address", Some("shop.example.org")),
        ("network.protocol.version", Some("1.1")),
        ("client.address", Some("192.0.2.1")),
        ("http.response.status_code", Some("200")),
        ("session.id", None),
        ("error.type", None),
    ] {
        assert_eq!(attribute(&span.attributes, key).as_deref(), value, "{key}");
    }
    let [export] = &collector.seen()[..] else { panic!("one export") };
    assert!(has(&export.headers, "authorization", "Bearer hunter2"));
    assert!(!export.body.contains("hunter2"), "no query");
}

#[tokio::test]
async fn span_has_session_and_error() {
    let (upstream, collector) = (Upstream::start(), Upstream::start());
    let proxy = proxy_with(&upstream, &collector.url(), "").await;
    let browser = Browser::new(&proxy);
    let made = Script { status: Some(503), ..Script::new() }.call("PUT", "/values/a", "1");
    browser.navigate("/", &made).await;
    let id = browser.navigate("/", &Script::new().get("")).await.json()["id"].clone();
    let odd = "MAKEUP / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    exchange(proxy.public(), odd).await;
    let cookie = browser.jar.lock().unwrap()["__Host-id"].clone();
    // A batch is exported a second after its first span, without a drain.
    until("spans come", || received(&collector).len() == 3).await;
    let spans = received(&collector);
    let of = |index: usize, key| attribute(&spans[index].1.attributes, key);
    assert_eq!((of(0, "http.response.status_code"), of(0, "error.type")), {
        let failed = Some("503".to_owned());
        (failed.clone(), failed)
    });
    assert_eq!(spans[0].1.status.as_ref().unwrap().code, 2);
    assert_eq!(spans[1].1.status.clone().unwrap_or_default().code, 0);
    assert_eq!(of(1, "session.id").as_deref(), id.as_str());
    assert_eq!(spans[2].1.name, "HTTP");
    assert_eq!(of(2, "http.request.method").as_deref(), Some("_OTHER"));
    assert_eq!(of(2, "http.request.method_original").as_deref(), Some("MAKEUP"));
    assert!(spans.iter().all(|(_, span)| span.parent_span_id.is_empty()));
    assert!(collector.seen().iter().all(|export| !export.body.contains(&cookie)));
}

#[tokio::test]
async fn untrusted_sender_does_not_enable_sampling() {
    let (upstream, collector) = (Upstream::start(), Upstream::start());
    let proxy = proxy_with(&upstream, &collector.url(), "sample_ratio = 0\n").await;
    for line in ["", &format!("traceparent: {TRACEPARENT}\r\n")] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{line}Connection: close\r\n\r\n");
        exchange(proxy.public(), &request).await;
        let seen = upstream.take_seen().pop().unwrap();
        let parent = seen.headers.iter().find(|(name, _)| name == "traceparent").unwrap();
        assert!(parent.1.ends_with("-00"), "the sender does not decide: {}", parent.1);
        assert_eq!(parent.1.contains("0af7651916cd43dd8448eb211c80319c"), !line.is_empty());
    }
    assert!(proxy.stop().await);
    assert!(received(&collector).is_empty());
}

#[tokio::test]
async fn unreachable_collector_delays_no_request_or_drain() {
    let (upstream, collector) = (Upstream::start(), Upstream::start());
    let way = FaultProxy::to(collector.address);
    way.set(Fault::Refuse);
    let proxy = proxy_with(&upstream, &format!("http://{}", way.address()), "").await;
    let browser = Browser::new(&proxy);
    let metrics = proxy.metrics().clone();
    for _ in 0..3 {
        assert_eq!(browser.navigate("/", &Script::new()).await.status, 200);
    }
    way.set(Fault::None);
    until("the spans come", || received(&collector).len() == 3).await;
    until("they are counted", || metrics.text().contains("spans_total{outcome=\"exported\"} 3"))
        .await;

    // One that accepts connections and never responds does not delay the drain. Its spans are counted as failed.
    way.set(Fault::Stall(crate::support::Direction::Both));
    assert_eq!(browser.navigate("/", &Script::new()).await.status, 200);
    assert!(proxy.stop().await);
    assert!(metrics.text().contains("spans_total{outcome=\"failed\"} 1"), "{}", metrics.text());
}

#[tokio::test]
async fn rejected_batch_is_dropped_and_counted() {
    // With a status that is final, or with a Retry-After that overflows every clock.
    let later = vec![("retry-after".to_owned(), u64::MAX.to_string())];
    for (status, headers) in [(400, Vec::new()), (503, later)] {
        let (upstream, collector) = (Upstream::start(), Upstream::start());
        let refusal = Script { status: Some(status), headers, ..Script::new() };
        let script = serde_json::to_string(&refusal).unwrap();
        let refusing = format!("otlp_headers = {{ X-Script = '{script}' }}\n");
        let proxy = proxy_with(&upstream, &collector.url(), &refusing).await;
        let metrics = proxy.metrics().clone();
        let browser = Browser::new(&proxy);
        for lost in 1..=2 {
            assert_eq!(browser.navigate("/", &Script::new()).await.status, 200);
            let counted = format!("spans_total{{outcome=\"failed\"}} {lost}");
            until("it is counted", || metrics.text().contains(&counted)).await;
            assert_eq!(
                collector.seen().len(),
                lost,
                "the batch is not retried, and the next one is sent"
            );
        }
    }
}
