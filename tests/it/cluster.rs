//! The program with a cluster: the nodes that its URL lists, and a slot map without primaries.

use serde_json::json;

use crate::support::{Cluster, Instance, RedisServer, Script, Upstream, needs, until};

fn store(nodes: &[&RedisServer]) -> String {
    let nodes: Vec<String> = nodes.iter().map(|node| node.address().to_string()).collect();
    format!("url = \"redis+cluster://{}\"\ntimeout = \"2s\"", nodes.join(","))
}

fn count() -> Script {
    Script::new().call("POST", "/values/n/increment", "")
}

/// Increments a counter in enough sessions that every node probably has some.
async fn check_counters(instance: &Instance) {
    for _ in 0..20 {
        let browser = instance.browser();
        for expected in 1..=3 {
            assert_eq!(browser.navigate("/", &count()).await.json(), json!(expected));
        }
    }
}

fn node_without_slots() -> RedisServer {
    RedisServer::start(&["--cluster-enabled", "yes", "--cluster-node-timeout", "1500"])
}

#[tokio::test]
async fn replicas_suffice_to_find_the_primaries() {
    needs!("redis-server");
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let upstream = Upstream::start();
    let stray = node_without_slots();
    let replicas: Vec<&RedisServer> = cluster.nodes()[3..].iter().collect();
    let with_stray = [&[&stray], &*replicas].concat();
    for nodes in [&replicas[..], &replicas[..1], &with_stray] {
        let instance = Instance::start(&upstream, &store(nodes)).await;
        check_counters(&instance).await;
        assert_eq!(instance.readiness().await, 200);
    }
}

#[tokio::test]
async fn nodes_of_the_url_may_become_replicas() {
    needs!("redis-server");
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let upstream = Upstream::start();
    let primaries: Vec<&RedisServer> = cluster.nodes()[..3].iter().collect();
    let before = Instance::start(&upstream, &store(&primaries)).await;
    let browser = before.browser();
    assert_eq!(browser.navigate("/", &count()).await.json(), json!(1));
    let cluster = tokio::task::spawn_blocking(move || {
        for replica in &cluster.nodes()[3..] {
            cluster.fail_over(replica);
        }
        cluster
    });
    let cluster = cluster.await.unwrap();
    let primaries: Vec<&RedisServer> = cluster.nodes()[..3].iter().collect();
    let after = Instance::start(&upstream, &store(&primaries)).await;
    assert_eq!(after.readiness().await, 200);
    check_counters(&after).await;
    let browser = browser.at(after.serving.public);
    assert_eq!(browser.navigate("/", &count()).await.json(), json!(2));
    // The instance that ran during the failovers still works.
    check_counters(&before).await;
    assert_eq!(before.readiness().await, 200);
}

#[tokio::test]
async fn map_without_primaries_is_not_ready() {
    needs!("redis-server");
    let upstream = Upstream::start();
    let (node, other) = (node_without_slots(), node_without_slots());
    let instance = Instance::start(&upstream, &store(&[&node, &other])).await;
    assert_eq!(instance.readiness().await, 503);
    let page = instance.browser().navigate("/", &count()).await;
    assert_eq!(page.last().status, 503, "{page:?}");
    node.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).done();
    let is_up = || node.command(&["CLUSTER", "INFO"]).text().contains("cluster_state:ok");
    until("the cluster is up", is_up).await;
    assert_eq!(instance.readiness().await, 200);
    check_counters(&instance).await;
}
