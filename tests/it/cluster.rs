//! The program before a cluster: where the slot map comes from, and what it means if there is none.

use serde_json::json;

use crate::support::{Cluster, Instance, RedisServer, Script, Upstream, needs, until};

fn store(nodes: &[&RedisServer]) -> String {
    let nodes: Vec<String> = nodes.iter().map(|node| node.address().to_string()).collect();
    format!("url = \"redis+cluster://{}\"\ntimeout = \"2s\"", nodes.join(","))
}

fn count() -> Script {
    Script::new().call("POST", "/values/n/increment", "")
}

/// As many visitors as are likely to have sessions on every node count to `count`.
async fn visitors_count(instance: &Instance) {
    for _ in 0..20 {
        let browser = instance.browser();
        for expected in 1..=3 {
            assert_eq!(browser.navigate("/", &count()).await.json(), json!(expected));
        }
    }
}

fn without_slots() -> RedisServer {
    RedisServer::start(&["--cluster-enabled", "yes", "--cluster-node-timeout", "1500"])
}

#[tokio::test]
async fn replicas_lead_to_the_primaries() {
    needs!("redis-server");
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let upstream = Upstream::start();
    let stray = without_slots();
    let replicas: Vec<&RedisServer> = cluster.nodes()[3..].iter().collect();
    let with_stray = [&[&stray], &*replicas].concat();
    for nodes in [&replicas[..], &replicas[..1], &with_stray] {
        let instance = Instance::start(&upstream, &store(nodes)).await;
        visitors_count(&instance).await;
        assert_eq!(instance.readiness().await, 200);
    }
}

#[tokio::test]
async fn a_failover_leaves_the_nodes_of_the_url_as_replicas() {
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
    visitors_count(&after).await;
    let browser = browser.at(after.serving.public);
    assert_eq!(browser.navigate("/", &count()).await.json(), json!(2));
    // The one that has seen it all goes on as well.
    visitors_count(&before).await;
    assert_eq!(before.readiness().await, 200);
}

#[tokio::test]
async fn a_map_without_primaries_is_not_ready() {
    needs!("redis-server");
    let upstream = Upstream::start();
    let (node, other) = (without_slots(), without_slots());
    let instance = Instance::start(&upstream, &store(&[&node, &other])).await;
    assert_eq!(instance.readiness().await, 503);
    let page = instance.browser().navigate("/", &count()).await;
    assert_eq!(page.last().status, 503, "{page:?}");
    node.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).done();
    let answers = || node.command(&["CLUSTER", "INFO"]).text().contains("cluster_state:ok");
    until("the cluster is well", answers).await;
    assert_eq!(instance.readiness().await, 200);
    visitors_count(&instance).await;
}
