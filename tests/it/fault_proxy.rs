//! The kit's proxy of faults does what its names say, before a real Redis. Nothing of ours is
//! tested here.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crate::support::{Connection, Direction, End, Fault, FaultProxy, RedisServer, Reply, needs};

/// Long enough for an answer that comes, short enough to wait for one that does not.
const SHORT: Duration = Duration::from_millis(150);

fn before_redis() -> FaultProxy {
    FaultProxy::to(RedisServer::shared().address())
}

fn open(proxy: &FaultProxy) -> Connection {
    let mut connection = Connection::open(proxy.address()).unwrap();
    assert_eq!(connection.command(&["PING"]).unwrap(), pong());
    connection
}

fn pong() -> Reply {
    Reply::Text("PONG".to_owned())
}

fn silent(connection: &mut Connection) {
    connection.patience(SHORT).unwrap();
    let error = connection.read().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    connection.patience(Duration::from_secs(5)).unwrap();
}

#[test]
fn a_delay_is_counted_each_way() {
    needs!("redis-server");
    let proxy = before_redis();
    let mut connection = open(&proxy);
    let (fixed, jitter) = (Duration::from_millis(60), Duration::from_millis(20));
    proxy.set(Fault::Delay { fixed, jitter });
    let began = Instant::now();
    connection.command(&["PING"]).unwrap();
    assert!(began.elapsed() >= fixed * 2);
    proxy.set(Fault::None);
    assert_eq!(connection.command(&["PING"]).unwrap(), pong());
}

#[test]
fn a_stall_holds_what_it_is_told_to_and_lets_it_go_afterwards() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let proxy = FaultProxy::to(server.address());
    for way in [Direction::Both, Direction::Requests, Direction::Replies] {
        server.command(&["DEL", "a"]);
        let mut connection = open(&proxy);
        proxy.set(Fault::Stall(way));
        connection.send(&["SET", "a", "b"]).unwrap();
        silent(&mut connection);
        let arrived = server.command(&["EXISTS", "a"]) == Reply::Number(1);
        assert_eq!(arrived, way == Direction::Replies, "{way:?}");
        // One that is new is taken, and hears nothing either.
        let mut late = Connection::open(proxy.address()).unwrap();
        late.send(&["PING"]).unwrap();
        silent(&mut late);
        proxy.set(Fault::None);
        assert_eq!(connection.read().unwrap().text(), "OK");
        assert_eq!(late.read().unwrap(), pong());
    }
}

#[test]
fn a_connection_is_cut_in_the_middle_of_a_reply() {
    needs!("redis-server");
    let proxy = before_redis();
    let mut connection = open(&proxy);
    let mut other = open(&proxy);
    proxy.end_after(7 + 3, End::Close);
    assert_eq!(connection.command(&["PING"]).unwrap(), pong());
    // `+PO`, and no more.
    let error = connection.command(&["PING"]).unwrap();
    assert_eq!(error, Reply::Text("PO".to_owned()));
    assert_eq!(connection.read().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(other.command(&["PING"]).unwrap(), pong(), "the others go on");

    proxy.end_after(0, End::Reset);
    let error = other.command(&["PING"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

#[test]
fn all_connections_are_reset() {
    needs!("redis-server");
    let proxy = before_redis();
    let mut connections = [open(&proxy), open(&proxy)];
    assert_eq!((proxy.connections(), proxy.accepted()), (2, 2));
    proxy.end(End::Reset);
    for connection in &mut connections {
        assert_eq!(connection.read().unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    open(&proxy);
}

#[test]
fn garbage_and_answers_to_no_question_come_once() {
    needs!("redis-server");
    let proxy = before_redis();
    let mut connection = open(&proxy);
    proxy.garbage(b"?!\r\n");
    assert_eq!(connection.command(&["PING"]).unwrap_err().kind(), ErrorKind::InvalidData);
    assert_eq!(connection.read().unwrap(), pong());

    proxy.extra_reply(b":7\r\n");
    assert_eq!(connection.command(&["PING"]).unwrap(), pong());
    assert_eq!(connection.read().unwrap(), Reply::Number(7));
    assert_eq!(connection.command(&["PING"]).unwrap(), pong());
}

#[test]
fn new_connections_are_refused_or_reset_while_old_ones_go_on() {
    needs!("redis-server");
    let proxy = before_redis();
    let mut connection = open(&proxy);
    proxy.set(Fault::Refuse);
    let error = Connection::open(proxy.address()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(connection.command(&["PING"]).unwrap(), pong());

    proxy.set(Fault::ResetNew);
    let reset = Connection::open(proxy.address()).and_then(|mut one| one.command(&["PING"]));
    assert!(matches!(
        reset.unwrap_err().kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    ));
    assert_eq!(connection.command(&["PING"]).unwrap(), pong());

    proxy.set(Fault::None);
    open(&proxy);
}

#[test]
fn a_blackhole_takes_the_old_connections_and_new_ones_work() {
    needs!("redis-server");
    let proxy = before_redis();
    let mut connection = open(&proxy);
    proxy.blackhole();
    connection.send(&["PING"]).unwrap();
    silent(&mut connection);
    open(&proxy);
    silent(&mut connection);
}

#[test]
fn it_points_elsewhere_and_ends_with_its_handle() {
    needs!("redis-server");
    let other = RedisServer::start(&[]);
    other.command(&["SET", "here", "yes"]).done();
    let proxy = before_redis();
    open(&proxy);
    proxy.set_target(other.address());
    let mut connection = open(&proxy);
    assert_eq!(connection.command(&["GET", "here"]).unwrap().text(), "yes");
    let address = proxy.address();
    drop(proxy);
    assert_eq!(connection.read().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    Connection::open(address).unwrap_err();
}
