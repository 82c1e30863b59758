//! The servers that tests start, without the proxy.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{
    Authority, Cluster, Connection, Flaw, Identity, RedisServer, Reply, Sentinels, needs,
};

fn ok() -> Reply {
    Reply::Text("OK".to_owned())
}

#[test]
fn server_continues_and_restarts_with_its_data() {
    needs!("redis-server");
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
fn drop_kills_a_stopped_server() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    server.stop();
    let start = Instant::now();
    let address = server.address();
    drop(server);
    assert!(start.elapsed() < Duration::from_secs(5));
    Connection::open(address).unwrap_err();
}

#[test]
fn replica_has_the_data_of_its_primary() {
    needs!("redis-server");
    let primary = RedisServer::start(&["--requirepass", "hunter2"]);
    primary.command(&["SET", "a", "b"]).done();
    let replica = RedisServer::replica_of(&primary);
    assert_eq!(replica.command(&["GET", "a"]), Reply::Text("b".to_owned()));
    assert!(replica.command(&["SET", "a", "c"]).text().starts_with("READONLY"));
}

#[test]
fn sentinels_fail_over_on_command_and_crash() {
    needs!("redis-server");
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
    needs!("redis-server");
    let all = Sentinels::start_with(Some("of-servers"), Some("of-sentinels"));
    for (server, password) in
        [(&all.servers()[1], "of-servers"), (&all.sentinels()[1], "of-sentinels")]
    {
        let mut anonymous = Connection::open(server.address()).unwrap();
        assert!(anonymous.command(&["PING"]).unwrap().text().starts_with("NOAUTH"));
        assert_eq!(server.command_as("default", password, &["PING"]).text(), "PONG");
    }
}

#[test]
fn cluster_fails_over_on_command_and_crash() {
    needs!("redis-server");
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
fn slot_migration_has_separate_steps() {
    needs!("redis-server");
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

    // In the middle: the old primary redirects, and the new one serves only clients that send ASKING.
    let ask = Reply::Error(format!("ASK {slot} {}", to.address()));
    let redirected =
        ["{a}1", "{a}2", "{a}3"].iter().filter(|key| from.command(&["GET", key]) == ask);
    assert_eq!(redirected.count(), 2);
    let mut connection = to.connect().unwrap();
    assert!(connection.command(&["GET", "{a}4"]).unwrap().text().starts_with("MOVED"));
    connection.command(&["ASKING"]).unwrap().done();
    assert_eq!(connection.command(&["GET", "{a}4"]).unwrap(), Reply::Nil);

    migration.finish();
    assert_eq!(cluster.primary_of(slot).unwrap().port(), to.port());
    assert_eq!(to.command(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]).number(), 3);
}

#[test]
fn unix_server_has_no_tcp_port() {
    needs!("redis-server");
    let server = RedisServer::unix(&[]);
    let url = server.url();
    let path = url.strip_prefix("redis+unix://").unwrap().strip_suffix("?db=0").unwrap();
    let mut connection = Connection::open_unix(path.as_ref()).unwrap();
    assert_eq!(connection.command(&["SET", "a", "b"]).unwrap(), ok());
    assert_eq!(server.command(&["GET", "a"]).text(), "b");
    assert_eq!(server.info("tcp_port"), "0");
}

/// Runs `redis-cli PING` over TLS. Returns its standard output and standard error.
fn ping(server: &RedisServer, authority: &Authority, client: Option<&Identity>) -> String {
    let mut command = Command::new("redis-cli");
    command.args(["-h", "127.0.0.1", "-p", &server.port().to_string(), "--tls"]);
    command.arg("--cacert").arg(authority.certificate());
    if let Some(client) = client {
        command.arg("--cert").arg(&client.certificate).arg("--key").arg(&client.key);
    }
    let output = command.arg("PING").output().unwrap();
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8(both).unwrap().trim().to_owned()
}

#[test]
fn tls_server_requires_a_client_certificate() {
    needs!("redis-server");
    let (ours, other) = (Authority::new(), Authority::new());
    let server = RedisServer::tls(&ours, &ours.server(Flaw::None), &[]);
    assert_eq!(server.url(), format!("rediss://127.0.0.1:{}/", server.port()));
    assert_eq!(server.command(&["PING"]).text(), "PONG", "the kit's own connection");
    assert!(Connection::open(server.address()).unwrap().command(&["PING"]).is_err(), "no TLS");

    let client = ours.client(Flaw::None);
    assert_eq!(ping(&server, &ours, Some(&client)), "PONG");
    let refused =
        |output: &str, why: &str| assert!(output != "PONG" && !output.is_empty(), "{why}");
    refused(&ping(&server, &ours, None), "no certificate");
    refused(&ping(&server, &ours, Some(&other.client(Flaw::None))), "issued by another authority");
    refused(&ping(&server, &ours, Some(&ours.client(Flaw::Expired))), "expired");
    refused(&ping(&server, &other, Some(&client)), "the client trusts another authority");

    let expired = RedisServer::tls(&ours, &ours.server(Flaw::Expired), &[]);
    let output = ping(&expired, &ours, Some(&client));
    assert!(output.contains("certificate verify failed"), "{output}");
}

#[test]
fn certificates_have_the_requested_flaw() {
    needs!("openssl");
    let authority = Authority::new();
    for (flaw, address, valid) in [
        (Flaw::None, "127.0.0.1", true),
        (Flaw::WrongName, "127.0.0.1", false),
        (Flaw::Expired, "127.0.0.1", false),
    ] {
        let output = Command::new("openssl")
            .args(["verify", "-verify_ip", address, "-CAfile"])
            .args([&authority.certificate(), &authority.server(flaw).certificate])
            .output()
            .unwrap();
        assert_eq!(output.status.success(), valid, "{flaw:?}: {output:?}");
    }
}

#[test]
fn users_have_rules_and_survive_restarts() {
    needs!("redis-server");
    let server = RedisServer::with_acl_file();
    server.acl_user("ada", "hunter2", "~ours:* +@all -flushall");
    for _ in 0..2 {
        let ada = |words: &[&str]| server.command_as("ada", "hunter2", words).text();
        assert_eq!(ada(&["SET", "ours:a", "b"]), "OK");
        assert!(ada(&["SET", "theirs:a", "b"]).starts_with("NOPERM"));
        assert!(ada(&["FLUSHALL"]).starts_with("NOPERM"));
        assert!(server.command_as("ada", "wrong", &["PING"]).text().starts_with("WRONGPASS"));
        server.restart();
    }
}
