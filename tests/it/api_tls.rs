//! The session API over TLS: client certificates, and calls between instances.

use serde_json::json;

use crate::support::{
    Authority, Browser, Cloakroom, CurlResponse, Flaw, RedisServer, Script, Upstream, curl, needs,
};

/// Returns `[api]` with TLS of this authority, which clients must have certificates of.
fn api(authority: &Authority) -> String {
    let server = authority.of(&["127.0.0.1"]);
    let client = authority.client(Flaw::None);
    let path = |path: &std::path::Path| format!("\"{}\"", path.display());
    format!(
        "[api]\naddress = \"127.0.0.1:0\"\ntls = {{ certificate = {}, key = {} }}\nclient_ca = {ca}\n\
         instance_tls = {{ ca = {ca}, certificate = {}, key = {} }}\n",
        path(&server.certificate),
        path(&server.key),
        path(&client.certificate),
        path(&client.key),
        ca = path(&authority.certificate()),
    )
}

/// Calls the API with a client certificate of `from`; `more` are arguments of curl.
async fn call(
    proxy: &Cloakroom,
    authority: &Authority,
    from: Option<&Authority>,
    token: &str,
    (path, more): (&str, &[&str]),
) -> CurlResponse {
    let url = format!("https://{}/_session{path}", proxy.api());
    let token = format!("X-Session-Token: {token}");
    let ca = authority.certificate();
    let mut arguments = vec!["--cacert", ca.to_str().unwrap(), "-H", &token, &url];
    arguments.extend(more);
    let identity = from.map(|authority| authority.client(Flaw::None));
    if let Some(identity) = &identity {
        arguments.extend(["--cert", identity.certificate.to_str().unwrap()]);
        arguments.extend(["--key", identity.key.to_str().unwrap()]);
    }
    curl(arguments).await
}

const GET: (&str, &[&str]) = ("", &[]);

fn token(upstream: &Upstream) -> String {
    let seen = upstream.seen();
    let header = |wanted: &str| {
        let found = seen.last()?.headers.iter().find(|(name, _)| name == wanted)?;
        Some(found.1.clone())
    };
    assert!(header("x-session-url").unwrap().starts_with("https://127.0.0.1:"));
    header("x-session-token").unwrap()
}

#[tokio::test]
async fn calls_need_a_client_certificate() {
    needs!("curl");
    let (upstream, authority, other) = (Upstream::start(), Authority::new(), Authority::new());
    let proxy = Cloakroom::with(&upstream, &api(&authority)).await;
    let page = {
        let browser = Browser::new(&proxy);
        tokio::spawn(async move { browser.navigate("/", &Script::new().wait("held")).await })
    };
    upstream.arrived("held", 1).await;
    let token = token(&upstream);
    let called = call(&proxy, &authority, Some(&authority), &token, GET).await;
    assert_eq!((called.exit, called.status, called.version.as_str()), (0, 200, "2"));
    for from in [None, Some(&other)] {
        let called = call(&proxy, &authority, from, &token, GET).await;
        assert!(called.exit != 0 && called.status == 0, "{called:?}");
    }
    let clear = format!("http://{}/_session", proxy.api());
    assert_ne!(curl([&clear]).await.status, 200);
    upstream.open("held");
    page.await.unwrap();
}

#[tokio::test]
async fn instances_call_each_other_over_tls() {
    needs!("redis-server", "curl");
    let (upstream, authority) = (Upstream::start(), Authority::new());
    let store = format!(
        "{}[store]\nurl = \"{}\"\nkey_prefix = \"api-tls:\"\ntimeout = \"20s\"\n",
        api(&authority),
        RedisServer::shared().url()
    );
    let (a, b) =
        (Cloakroom::with(&upstream, &store).await, Cloakroom::with(&upstream, &store).await);
    let page = {
        let browser = Browser::new(&a);
        tokio::spawn(async move { browser.navigate("/", &Script::new().wait("held")).await })
    };
    upstream.arrived("held", 1).await;
    let token = token(&upstream);
    // Only `a` can create the session of its request; `b` forwards the call.
    let put = ("/values/cart", ["-X", "PUT", "--data", "[1]"].as_slice());
    let put = call(&b, &authority, Some(&authority), &token, put).await;
    assert_eq!((put.exit, put.status / 100), (0, 2), "{put:?}");
    upstream.open("held");
    let page = page.await.unwrap();
    assert_eq!(page.set_cookies().len(), 1);
    let called = call(&a, &authority, Some(&authority), &token, GET).await;
    let session: serde_json::Value = serde_json::from_str(&called.body).unwrap();
    assert_eq!(session["values"], json!({"cart": [1]}));
}

#[tokio::test]
async fn certificates_of_the_api_are_reloaded() {
    needs!("curl");
    let (upstream, authorities) = (Upstream::start(), [Authority::new(), Authority::new()]);
    let mut proxy = Cloakroom::with(&upstream, &api(&authorities[0])).await;
    let exit = async |proxy: &Cloakroom, authority: &Authority| {
        call(proxy, authority, Some(authority), "none", GET).await.exit
    };
    assert_eq!(exit(&proxy, &authorities[0]).await, 0);
    assert_ne!(exit(&proxy, &authorities[1]).await, 0);
    assert_eq!(proxy.reload(&upstream, &api(&authorities[1])).unwrap(), [""; 0]);
    assert_ne!(exit(&proxy, &authorities[0]).await, 0);
    assert_eq!(exit(&proxy, &authorities[1]).await, 0);
    let left = proxy.reload(&upstream, "[api]\naddress = \"127.0.0.1:0\"\n").unwrap();
    assert!(left.contains(&"api.tls"), "{left:?}");
}
