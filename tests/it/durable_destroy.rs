//! The program with `durable_destroy` unset: a destroy waits for a replica if one was ever seen, even
//! if none is connected now.

use serde_json::{Value, json};

use crate::support::{Cluster, Instance, RedisServer, Script, Sentinels, Upstream, needs, until};

/// Destroys a new session. Returns its id, and `replicated` of the response: null if the destroy did
/// not wait.
async fn destroyed(instance: &Instance) -> (String, Value) {
    let browser = instance.browser();
    let created = browser.navigate("/", &Script::new().patch(&json!({"principal": "ada"}))).await;
    let id = created.json()["id"].as_str().unwrap().to_owned();
    let prefer = [("prefer", "return=representation")];
    let page = browser.navigate("/", &Script::new().call_with("DELETE", "", &prefer, "")).await;
    let answer = page.json();
    assert_eq!(answer["destroyed"], json!(1));
    (id, answer["replicated"].clone())
}

async fn replicated(instance: &Instance) -> Value {
    destroyed(instance).await.1
}

fn store(server: &RedisServer) -> String {
    format!("url = \"{}\"\ntimeout = \"1s\"\n", server.url())
}

async fn wait_for_no_replicas(primary: &RedisServer) {
    until("the primary has no replicas", || primary.info("connected_slaves") == "0").await;
}

#[tokio::test]
async fn destroy_waits_once_a_replica_was_seen() {
    needs!("redis-server");
    let primary = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let instance = Instance::start(&upstream, &store(&primary)).await;
    assert_eq!(replicated(&instance).await, json!(null));
    // A later replica is noticed.
    let replica = RedisServer::replica_of(&primary);
    assert_eq!(replicated(&instance).await, json!(true));
    replica.kill();
    wait_for_no_replicas(&primary).await;
    assert_eq!(replicated(&instance).await, json!(false));
    // An instance that starts now has never seen a replica.
    let other = Instance::start(&upstream, &store(&primary)).await;
    assert_eq!(replicated(&other).await, json!(null));
}

#[tokio::test]
async fn replica_seen_at_start_is_remembered() {
    needs!("redis-server");
    let primary = RedisServer::start(&[]);
    let replica = RedisServer::replica_of(&primary);
    let upstream = Upstream::start();
    let instance = Instance::start(&upstream, &store(&primary)).await;
    replica.kill();
    wait_for_no_replicas(&primary).await;
    assert_eq!(replicated(&instance).await, json!(false));
}

#[tokio::test]
async fn destroy_always_waits_with_sentinels() {
    needs!("redis-server");
    let sentinels = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    let upstream = Upstream::start();
    let addresses = sentinels.addresses().join(",");
    let url = format!("redis+sentinel://{addresses}/{}", Sentinels::SERVICE);
    let [primary, replicas @ ..] = sentinels.servers() else { panic!("servers") };
    replicas.iter().for_each(RedisServer::kill);
    wait_for_no_replicas(primary).await;
    let instance = Instance::start(&upstream, &format!("url = \"{url}\"\ntimeout = \"1s\"")).await;
    assert_eq!(replicated(&instance).await, json!(false));
}

#[tokio::test]
async fn cluster_slots_that_had_replicas_wait() {
    needs!("redis-server");
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let upstream = Upstream::start();
    let seeds = cluster.seeds().join(",");
    let store = format!("url = \"redis+cluster://{seeds}\"\ntimeout = \"1s\"");
    let instance = Instance::start(&upstream, &store).await;
    cluster.nodes()[3].kill();
    wait_for_no_replicas(&cluster.nodes()[0]).await;
    let (mut without, mut with) = (0, 0);
    while without == 0 || with == 0 {
        let (id, replicated) = destroyed(&instance).await;
        let slot = cluster.slot_of(&format!("cloakroom:s:{{{id}}}"));
        let primary = cluster.primary_of(slot).unwrap();
        let is_alone = primary.port() == cluster.nodes()[0].port();
        assert_eq!(replicated, json!(!is_alone));
        *(if is_alone { &mut without } else { &mut with }) += 1;
    }
}

#[tokio::test]
async fn cluster_without_replicas_does_not_wait() {
    needs!("redis-server");
    let node = RedisServer::start(&["--cluster-enabled", "yes"]);
    node.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).done();
    let is_up = || node.command(&["CLUSTER", "INFO"]).text().contains("cluster_state:ok");
    until("the cluster is up", is_up).await;
    let upstream = Upstream::start();
    let url = format!("url = \"redis+cluster://{}\"", node.address());
    let instance = Instance::start(&upstream, &url).await;
    assert_eq!(replicated(&instance).await, json!(null));
}

#[tokio::test]
async fn refused_command_disables_the_wait() {
    needs!("redis-server");
    let upstream = Upstream::start();
    for refused in ["-wait", "-role"] {
        let primary = RedisServer::start(&[]);
        let rules = format!("~* +@all {refused}");
        primary.acl_user("cloakroom", "secret", &rules);
        let _replica = RedisServer::replica_of(&primary);
        let url = format!("url = \"redis://cloakroom:secret@{}\"\n", primary.address());
        let instance = Instance::start(&upstream, &url).await;
        for _ in 0..3 {
            assert_eq!(replicated(&instance).await, json!(null));
        }
        instance.program.wait_for_log("a destroy does not wait for a replica").await;
        let log = instance.program.log();
        assert_eq!(log.matches("a destroy does not wait").count(), 1, "{log}");
        // With `durable_destroy = true`, the response says what is known.
        let wanted = Instance::start(&upstream, &format!("{url}durable_destroy = true")).await;
        let expected = if refused == "-wait" { json!(false) } else { json!(true) };
        assert_eq!(replicated(&wanted).await, expected);
    }
}
