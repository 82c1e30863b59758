//! Addresses, TLS and passwords.

use super::kit::{Authority, Flaw, RedisServer};
use super::tools::needs;
use super::*;
use crate::redis::config::{ClientCertificate, Password, Tls};
use crate::secret::Secret;

fn fixed(password: &str) -> Password {
    Password::Fixed(Secret::new(password.to_owned()))
}

#[tokio::test]
async fn socket_and_database_work() {
    needs!("redis-server");
    let server = RedisServer::unix(&[]);
    let config = Config { database: 3, ..single(Address::Unix(server.socket())) };
    Client::new(&config, TIMEOUT).check_calls().await;
    assert!(server.info("db3").contains("keys="));
}

#[tokio::test]
async fn tls_requires_the_right_certificates() {
    needs!("redis-server");
    let authority = Authority::new();
    let identity = authority.client(Flaw::None);
    let client = |server: &RedisServer, tls| {
        Client::new(&Config { tls: Some(tls), ..single(local(server.port())) }, TIMEOUT)
    };
    let tls = |ca: &Authority| Tls {
        ca: Some(ca.certificate()),
        client: Some(ClientCertificate {
            certificate: identity.certificate.clone(),
            key: identity.key.clone(),
        }),
    };
    let good = RedisServer::tls(&authority, &authority.server(Flaw::None), &[]);
    client(&good, tls(&authority)).check_calls().await;
    let other = Authority::new();
    let anonymous = Tls { client: None, ..tls(&authority) };
    let plain = Client::at(good.port(), TIMEOUT);
    let mut refused = vec![client(&good, tls(&other)), client(&good, anonymous), plain];
    let flawed: Vec<RedisServer> = [Flaw::Expired, Flaw::WrongName]
        .into_iter()
        .map(|flaw| RedisServer::tls(&authority, &authority.server(flaw), &[]))
        .collect();
    refused.extend(flawed.iter().map(|server| client(server, tls(&authority))));
    for client in refused {
        let reply = client.ping().await;
        assert!(matches!(reply, Err(CallError::NotSent(_))), "{reply:?}");
    }
}

#[tokio::test]
async fn changed_password_file_needs_no_restart() {
    needs!("redis-server");
    let server = RedisServer::start(&["--requirepass", "first"]);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("password");
    std::fs::write(&file, "first\n").expect("a file");
    let password = Some(Password::File(file.clone()));
    let config = Config { password, ..single(local(server.port())) };
    let client = Client::new(&config, Duration::from_millis(500));
    client.check_calls().await;
    client.ask::<()>("", &["CONFIG", "SET", "requirepass", "second"]).await.expect("set");
    let mut other = kit::Connection::open(server.address()).expect("a connection");
    other.command(&["AUTH", "second"]).expect("a reply").done();
    other.command(&["CLIENT", "KILL", "TYPE", "normal"]).expect("a reply").done();
    while client.ping().await.is_ok() {}
    let error = client.ping().await.expect_err("the old password");
    assert!(!format!("{error:?}").contains("first"), "{error:?}");
    std::fs::write(&file, "second\n").expect("a file");
    client.wait_until_reconnected().await;
    client.check_calls().await;
}

#[tokio::test]
async fn errors_do_not_reveal_the_password() {
    needs!("redis-server");
    let server = RedisServer::start(&["--requirepass", "hunter2"]);
    let client =
        |password| Client::new(&Config { password, ..single(local(server.port())) }, TIMEOUT);
    client(Some(fixed("hunter2"))).check_calls().await;
    for refused in [client(Some(fixed("hunter3"))), client(None)] {
        let reply = refused.ping().await;
        assert!(matches!(reply, Err(CallError::NotSent(_))), "{reply:?}");
        let text = format!("{reply:?} {refused:?}");
        assert!(!text.contains("hunter"), "{text}");
    }
}
