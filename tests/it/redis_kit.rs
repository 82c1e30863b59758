//! The kit's servers do what their names say. Nothing of the proxy is tested here.

use std::time::{Duration, Instant};

use crate::support::{Cluster, Connection, RedisServer, Reply, Sentinels};

fn ok() -> Reply {
    Reply::Text("OK".to_owned())
}

#[test]
fn a_server_stops_continues_dies_and_comes_back_with_its_data() {
    let server = RedisServer::start(&["--appendonly", "yes"]);
    assert_eq!(server.command(&["SET", "a", "b"]), ok());
    assert_eq!(server.info("process_id"), server.pid().to_string());

    let mut connection = Connection::open(server.address()).unwrap();
    connection.patience(Duration::from_millis(100)).unwrap();
    server.stop();
    connection.command(&["GET", "a"]).unwrap_err();
    server.cont();
    connection.patience(Duration::from_secs(5)).unwrap();
    assert_eq!(connection.read().unwrap(), Reply::Text("b".to_owned()));

    let before = server.pid();
    server.kill();
    Connection::open(server.address()).unwrap_err();
    server.restart();
    assert_ne!(server.pid(), before);
    assert_eq!(server.command(&["GET", "a"]), Reply::Text("b".to_owned()));
}

#[test]
fn a_stopped_server_ends_with_its_handle() {
    let server = RedisServer::start(&[]);
    server.stop();
    let began = Instant::now();
    let address = server.address();
    drop(server);
    assert!(began.elapsed() < Duration::from_secs(5));
    Connection::open(address).unwrap_err();
}

#[test]
fn a_replica_has_the_data_of_its_primary() {
    let primary = RedisServer::start(&["--requirepass", "hunter2"]);
    primary.command(&["SET", "a", "b"]).done();
    let replica = RedisServer::replica_of(&primary);
    assert_eq!(replica.command(&["GET", "a"]), Reply::Text("b".to_owned()));
    assert!(replica.command(&["SET", "a", "c"]).text().starts_with("READONLY"));
}

#[test]
fn sentinels_name_the_primary_and_replace_it_by_command_and_when_it_dies() {
    let all = Sentinels::start();
    assert_eq!(all.addresses().len(), 3);
    let first = all.primary();
    assert_eq!(first.port(), all.servers()[0].port());

    let second = all.failover();
    assert_ne!(second.port(), first.port());
    assert_eq!(all.primary_address(), second.address());
    all.wait_until_whole();

    second.kill();
    let third = all.wait_for_primary_other_than(second.port());
    third.command(&["SET", "a", "b"]).done();
    second.restart();
    all.wait_until_whole();
    assert_eq!(second.command(&["GET", "a"]), Reply::Text("b".to_owned()));
}

#[test]
fn sentinels_and_servers_have_passwords() {
    let all = Sentinels::start_with(Some("of-servers"), Some("of-sentinels"));
    for (server, password) in
        [(&all.servers()[1], "of-servers"), (&all.sentinels()[1], "of-sentinels")]
    {
        let mut stranger = Connection::open(server.address()).unwrap();
        assert!(stranger.command(&["PING"]).unwrap().text().starts_with("NOAUTH"));
        assert_eq!(server.command_as("default", password, &["PING"]).text(), "PONG");
    }
}

#[test]
fn a_cluster_fails_over_by_command_and_when_a_primary_dies() {
    let cluster = Cluster::start();
    let slot = cluster.slot_of("a");
    let first = cluster.primary_of(slot).unwrap();
    first.command(&["SET", "a", "b"]).done();
    let other = cluster.nodes()[..3].iter().find(|node| node.port() != first.port()).unwrap();
    let moved = format!("MOVED {slot} {}", first.address());
    assert_eq!(other.command(&["GET", "a"]), Reply::Error(moved));

    let replicas = cluster.replicas_of(first);
    assert_eq!(replicas.len(), 1);
    cluster.fail_over(replicas[0]);
    let second = cluster.primary_of(slot).unwrap();
    assert_eq!(second.port(), replicas[0].port());

    second.kill();
    let third = cluster.wait_for_primary_of(slot, second.port());
    assert_eq!(third.command(&["GET", "a"]).text(), "b");
    second.restart();
    cluster.wait_until_whole();
}

#[test]
fn a_slot_moves_step_by_step() {
    let cluster = Cluster::start();
    let slot = cluster.slot_of("{a}");
    let from = cluster.primary_of(slot).unwrap();
    let to = cluster.nodes()[..3].iter().find(|node| node.port() != from.port()).unwrap();
    for key in ["{a}1", "{a}2", "{a}3"] {
        from.command(&["SET", key, "b"]).done();
    }
    let migration = cluster.migration(slot, to);
    migration.begin();
    assert_eq!(migration.move_keys(2), 2);
    assert_eq!(from.command(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]).number(), 1);

    // Half way: the old primary sends us on, and the new one serves those who ask.
    let ask = Reply::Error(format!("ASK {slot} {}", to.address()));
    let gone = ["{a}1", "{a}2", "{a}3"].iter().filter(|key| from.command(&["GET", key]) == ask);
    assert_eq!(gone.count(), 2);
    let mut connection = to.connect().unwrap();
    assert!(connection.command(&["GET", "{a}4"]).unwrap().text().starts_with("MOVED"));
    connection.command(&["ASKING"]).unwrap().done();
    assert_eq!(connection.command(&["GET", "{a}4"]).unwrap(), Reply::Nil);

    migration.finish();
    assert_eq!(cluster.primary_of(slot).unwrap().port(), to.port());
    assert_eq!(to.command(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]).number(), 3);
}
