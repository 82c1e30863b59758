//! The commands that a call costs.

use super::*;

/// Returns the number of commands that read, or run a script, since its last call. Commands that scripts run are
/// included.
pub(super) async fn sent(store: &Redis) -> Vec<String> {
    let text: String =
        redis::from_redis_value(raw(store, &["INFO", "commandstats"]).await).expect("text");
    raw(store, &["CONFIG", "RESETSTAT"]).await;
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((name, rest)) =
            line.strip_prefix("cmdstat_").and_then(|line| line.split_once(":calls="))
        else {
            continue;
        };
        if ["evalsha", "hgetall", "hmget", "script|load"].contains(&name) {
            let count = rest.split(',').next().unwrap_or_default();
            calls.push(format!("{count} {name}"));
        }
    }
    calls.sort();
    calls
}

/// Returns the number of scripts that were run since the last call of [`sent`].
pub(super) async fn scripts_sent(store: &Redis) -> String {
    let sent = sent(store).await.into_iter();
    sent.filter(|calls| calls.ends_with("evalsha")).collect()
}

/// Returns a store whose scripts are loaded.
pub(super) async fn warm(server: &RedisServer) -> Redis {
    let store = store_on(server);
    let id = create(&store, &record_of_ada(now())).await;
    apply(&store, id, &increment(1), Want::Meta).await;
    let used = store.record_use(id, touch(now()), &POLICY).await;
    used.expect("a reply");
    sent(&store).await;
    store
}

#[test]
fn calls_are_one_command() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    runtime().block_on(async {
        let store = warm(&server).await;
        let id = create(&store, &record(now(), Values::new())).await;
        assert_eq!(sent(&store).await, ["1 evalsha"]);
        apply(&store, id, &increment(1), Want::Values).await;
        // The script itself runs the other two.
        assert_eq!(sent(&store).await, ["1 evalsha", "1 hgetall", "1 hmget"]);
        let used = store.record_use(id, touch(now()), &POLICY).await;
        used.expect("a reply");
        assert_eq!(sent(&store).await, ["1 evalsha", "1 hmget"]);
        store.load(id, Want::Values).await.expect("loaded");
        assert_eq!(sent(&store).await, ["1 hgetall"]);
        for want in [Want::Meta, Want::Value(&key("n"))] {
            store.load(id, want).await.expect("loaded");
            assert_eq!(sent(&store).await, ["1 hmget"]);
        }
    });
}

#[test]
fn log_in_takes_two_commands() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    runtime().block_on(async {
        let store = warm(&server).await;
        let id = create(&store, &record_of_ada(now())).await;
        assert_eq!(scripts_sent(&store).await, "2 evalsha");
        let later = touch(now() + Duration::from_mins(2));
        let used = store.record_use(id, later, &POLICY).await;
        used.expect("a reply");
        assert_eq!(scripts_sent(&store).await, "1 evalsha", "the index has a later end");
        let log_in = Patch::of_log_in(ada());
        apply(&store, id, &log_in, Want::Meta).await;
        assert_eq!(scripts_sent(&store).await, "2 evalsha");
    });
}
