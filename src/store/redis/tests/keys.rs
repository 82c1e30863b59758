//! Fingerprints of the session keys of all instances.

use super::access::{ACCESS, server_with_access};
use super::*;
use crate::session::key_ring::Fingerprint;
use crate::store::{KnownKey, KnownKeys};
use crate::time::Timestamp;

fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::parse(&format!("{number:016x}")).expect("a fingerprint")
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
}

async fn exchange(store: &Redis, own: &[u8], now: Timestamp) -> Vec<(u8, Timestamp)> {
    let own: Vec<_> = own.iter().copied().map(fingerprint).collect();
    match store.exchange_keys(&own, now).await.expect("a reply") {
        KnownKeys::Known(known) => {
            let reply = |key: KnownKey| (key.fingerprint.as_bytes()[7], key.since);
            let mut known: Vec<_> = known.into_iter().map(reply).collect();
            known.sort_unstable();
            known
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_have_the_time_all_instances_had_them() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store =
        Redis::new(&Deployment::new(&settings(local(server.port())), TIMEOUT), Tasks::new());
    let zero = Timestamp::from_millis(0);
    runtime().block_on(async {
        assert_eq!(exchange(&store, &[1], at(0)).await, []);
        assert_eq!(exchange(&store, &[1, 2], at(1)).await, [(1, zero)]);
        // An entry keeps its time until an instance starts without the key.
        assert_eq!(exchange(&store, &[2, 1], at(2)).await, [(1, zero), (2, at(1))]);
        assert_eq!(exchange(&store, &[1], at(3)).await, [(1, zero), (2, at(1))]);
        assert_eq!(exchange(&store, &[1, 2], at(4)).await, [(1, zero)]);
        assert_eq!(exchange(&store, &[2], at(5)).await, [(1, zero), (2, at(4))]);
        assert_eq!(exchange(&store, &[2], at(6)).await, [(2, at(4))]);
    });
}

#[test]
fn refused_or_foreign_set_disables_exchange() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let config = settings(local(server.port()));
    let store = Redis::new(&Deployment::new(&config, TIMEOUT), Tasks::new());
    runtime().block_on(async {
        raw(&store, &["SET", &format!("{}keys", store.prefix), "x"]).await;
        let answer = store.exchange_keys(&[fingerprint(1)], at(0)).await.expect("a reply");
        assert!(matches!(answer, KnownKeys::Denied(_)), "{answer:?}");
    });
    for access in [ACCESS.replace("+zadd ", ""), ACCESS.replace("+zrange ", "")] {
        let (_server, deployment) = server_with_access(&access);
        let store = Redis::new(&deployment, Tasks::new());
        runtime().block_on(async {
            let answer = store.exchange_keys(&[fingerprint(1)], at(0)).await.expect("a reply");
            assert!(matches!(answer, KnownKeys::Denied(_)), "{access}: {answer:?}");
        });
    }
}
