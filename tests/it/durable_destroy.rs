//! The program with `durable_destroy` unset: a destroy waits wherever there has been a replica, also
//! when there is none at the moment.

use serde_json::{Value, json};

use crate::support::{Cluster, Instance, RedisServer, Script, Sentinels, Upstream, needs, until};

/// What the answer to a destroy of a session says of replicas: true, false, or null if it was not
/// waited for. With the session's id.
async fn destroyed(instance: &Instance) -> (String, Value) {
    let browser = instance.browser();
    let made = browser.navigate("/", &Script::new().patch(&json!({"principal": "ada"}))).await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let told = [("prefer", "return=representation")];
    let page = browser.navigate("/", &Script::new().call_with("DELETE", "", &told, "")).await;
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

async fn has_lost_its_replicas(primary: &RedisServer) {
    until("the primary misses its replicas", || primary.info("connected_slaves") == "0").await;
}

#[tokio::test]
async fn a_server_that_had_a_replica_is_waited_for() {
    needs!("redis-server");
    let primary = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let instance = Instance::start(&upstream, &store(&primary)).await;
    assert_eq!(replicated(&instance).await, json!(null));
    // One that comes later is noticed.
    let replica = RedisServer::replica_of(&primary);
    assert_eq!(replicated(&instance).await, json!(true));
    replica.kill();
    has_lost_its_replicas(&primary).await;
    assert_eq!(replicated(&instance).await, json!(false));
    // It never had one, as far as one knows that starts now.
    let other = Instance::start(&upstream, &store(&primary)).await;
    assert_eq!(replicated(&other).await, json!(null));
}

#[tokio::test]
async fn a_replica_seen_at_the_start_is_remembered() {
    needs!("redis-server");
    let primary = RedisServer::start(&[]);
    let replica = RedisServer::replica_of(&primary);
    let upstream = Upstream::start();
    let instance = Instance::start(&upstream, &store(&primary)).await;
    replica.kill();
    has_lost_its_replicas(&primary).await;
    assert_eq!(replicated(&instance).await, json!(false));
}

#[tokio::test]
async fn with_sentinels_a_destroy_always_waits() {
    needs!("redis-server");
    let sentinels = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    let upstream = Upstream::start();
    let addresses = sentinels.addresses().join(",");
    let url = format!("redis+sentinel://{addresses}/{}", Sentinels::SERVICE);
    let [primary, replicas @ ..] = sentinels.servers() else { panic!("servers") };
    replicas.iter().for_each(RedisServer::kill);
    has_lost_its_replicas(primary).await;
    let instance = Instance::start(&upstream, &format!("url = \"{url}\"\ntimeout = \"1s\"")).await;
    assert_eq!(replicated(&instance).await, json!(false));
}

#[tokio::test]
async fn in_a_cluster_slots_that_had_a_replica_wait() {
    needs!("redis-server");
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let upstream = Upstream::start();
    let seeds = cluster.seeds().join(",");
    let store = format!("url = \"redis+cluster://{seeds}\"\ntimeout = \"1s\"");
    let instance = Instance::start(&upstream, &store).await;
    cluster.nodes()[3].kill();
    has_lost_its_replicas(&cluster.nodes()[0]).await;
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
async fn a_cluster_without_replicas_waits_for_nothing() {
    needs!("redis-server");
    let node = RedisServer::start(&["--cluster-enabled", "yes"]);
    node.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).done();
    let answers = || node.command(&["CLUSTER", "INFO"]).text().contains("cluster_state:ok");
    until("the cluster is well", answers).await;
    let upstream = Upstream::start();
    let url = format!("url = \"redis+cluster://{}\"", node.address());
    let instance = Instance::start(&upstream, &url).await;
    assert_eq!(replicated(&instance).await, json!(null));
}

#[tokio::test]
async fn a_refused_command_switches_the_wait_off() {
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
        // Whoever wants it is told the truth.
        let wanted = Instance::start(&upstream, &format!("{url}durable_destroy = true")).await;
        let said = if refused == "-wait" { json!(false) } else { json!(true) };
        assert_eq!(replicated(&wanted).await, said);
    }
}
