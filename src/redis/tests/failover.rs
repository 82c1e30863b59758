//! Primaries that are demoted, replaced or frozen.

use super::kit::{Cluster, RedisServer, Sentinels};
use super::tools::needs;
use super::*;

#[tokio::test]
async fn demoted_server_gets_no_calls() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let client = Client::at(server.port(), TIMEOUT);
    client.increment("n").await.expect("incremented");
    server.command(&["REPLICAOF", "127.0.0.1", "1"]).done();
    let written = client.increment("n").await;
    assert!(matches!(written, Err(CallError::Refused(_))), "{written:?}");
    let written = client.increment("n").await;
    assert!(matches!(written, Err(CallError::NotSent(_))), "{written:?}");
    // Its data may be outdated.
    let read = client.get("n").await;
    assert!(matches!(read, Err(CallError::NotSent(_))), "{read:?}");
    server.command(&["REPLICAOF", "NO", "ONE"]).done();
    client.wait_until_reconnected().await;
    assert_eq!(client.increment("n").await.expect("incremented"), 2);
}

#[tokio::test]
async fn calls_go_to_the_promoted_replica() {
    needs!("redis-server");
    let sentinels = Sentinels::start();
    let addresses = sentinels.sentinels().iter().map(|server| local(server.port())).collect();
    let service = Sentinels::SERVICE.to_owned();
    let topology = Topology::Sentinel { sentinels: addresses, service };
    let client = Client::new(&config(topology), Duration::from_secs(5));
    client.increment("n").await.expect("incremented");
    client.wait_for_replicas(2).await;
    sentinels.failover();
    // The old primary accepts writes until it is demoted, and they are lost.
    sentinels.wait_until_whole();
    client.wait_until_reconnected().await;
    client.increment("n").await.expect("incremented");
    client.wait_for_replicas(2).await;
    // Without a command, the sentinels have to notice the failure first.
    let killed = sentinels.primary();
    killed.kill();
    sentinels.wait_for_primary_other_than(killed.port());
    client.wait_until_reconnected().await;
    assert_eq!(client.get("n").await.expect("a reply"), Some(2));
}

#[tokio::test]
async fn frozen_primary_is_replaced_and_blocks_no_other() {
    needs!("redis-server");
    let cluster = Cluster::start();
    let nodes = cluster.nodes().iter().take(2).map(|node| local(node.port())).collect();
    let client = Client::new(&config(Topology::Cluster { nodes }), Duration::from_millis(300));
    let first = &cluster.nodes()[0];
    let (mut frozen, mut others) = (None, Vec::new());
    for number in 0.. {
        if frozen.is_some() && others.len() >= 5 {
            break;
        }
        let key = format!("n{number}");
        client.increment(&key).await.expect("incremented");
        let primary = cluster.primary_of(cluster.slot_of(&key)).expect("an owner");
        if primary.port() == first.port() {
            frozen = Some(key);
        } else {
            others.push(key);
        }
    }
    let frozen = frozen.expect("a key of the first node");
    first.stop();
    let start = Instant::now();
    while client.get(&frozen).await.is_err() {
        for key in &others {
            assert!(client.get(key).await.is_ok(), "blocked by the frozen node");
        }
        assert!(start.elapsed() < TIMEOUT, "not replaced");
    }
    client.increment(&frozen).await.expect("incremented");
    first.cont();
    cluster.wait_until_whole();
    client.increment(&frozen).await.expect("incremented");
}
