//! The access list: which commands the store needs.

use super::*;
use crate::redis::config::Password;
use crate::redis::tests::kit::Reply;
use crate::secret::Secret;
use crate::time::Clock;

/// The commands that docs/guides/operate/redis.md lists.
pub(super) const ACCESS: &str = "+hello +auth +select +ping +role +info +time +evalsha +eval +exists +del \
                      +pexpireat +hget +hset +hdel +hmget +hgetall +hexists +hstrlen +hincrby \
                      +zadd +zscore +zrange +zrangebyscore +zrem +scan +wait +client|tracking";

/// Starts a server whose user may run these commands. Returns it with a deployment of that user.
pub(super) fn server_with_access(access: &str) -> (RedisServer, Deployment) {
    let rules = "--user cloakroom on >hunter2 ~test:* -@all";
    let options: Vec<&str> = rules.split_whitespace().chain(access.split_whitespace()).collect();
    let server = RedisServer::start(&options);
    let config = config::Redis {
        user: Some("cloakroom".to_owned()),
        password: Some(Password::Fixed(Secret::new("hunter2".to_owned()))),
        ..settings(local(server.port()))
    };
    let deployment = Deployment::new(&config, TIMEOUT);
    (server, deployment)
}

#[test]
fn documented_access_is_enough() {
    needs!("redis-server");
    let documented = include_str!("../../../../docs/guides/operate/redis.md");
    for command in ACCESS.split_whitespace() {
        assert!(documented.contains(command), "{command}");
    }
    let (server, deployment) = server_with_access(ACCESS);
    runtime().block_on(async {
        let survey = deployment.survey(&POLICY, now()).await;
        assert_eq!(survey.expect("surveyed").evicts, None);
        let store = Redis::new(&deployment, Tasks::new());
        let id = create(&store, &record_of_ada(now())).await;
        apply(&store, id, &increment(1), Want::Values).await;
        store.ping().await.expect("read");
        store.probe(now()).await.expect("written");
        store.remove(new_id()).await.expect("a reply");
        for principal in [None, Some(&ada())] {
            assert_eq!(store.list(principal, None, 10).await.expect("listed").sessions.len(), 1);
        }
        store.exchange_keys(&[], now()).await.expect("a reply");
        let own = Fingerprint::parse("0000000000000001");
        for _ in 0..2 {
            let known = store.exchange_keys(own.as_slice(), now()).await.expect("a reply");
            assert!(matches!(known, KnownKeys::Known(_)), "{known:?}");
        }
        assert_eq!(server.command(&["ACL", "LOG"]), Reply::List(Vec::new()));
    });
}

#[test]
fn survey_names_the_refused_command() {
    needs!("redis-server");
    runtime().block_on(async {
        let (server, deployment) = server_with_access(&ACCESS.replace("+hset ", ""));
        let reply = match deployment.survey(&POLICY, now()).await {
            Err(SurveyError::Denied(reply)) => reply,
            other => panic!("{other:?}"),
        };
        assert!(reply.contains("hset"), "{reply}");
        server.command(&["ACL", "SETUSER", "cloakroom", "+hset"]).done();
        server.command(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]).done();
        let survey = deployment.survey(&POLICY, now()).await.expect("surveyed");
        assert_eq!(survey.evicts.as_deref(), Some("volatile-lru"));
        let ahead = survey.ahead.expect("the server has a clock");
        let system = Clock::System.now().as_millis();
        assert!((now().as_millis() - system - ahead).abs() < 60_000, "{ahead}");
    });
}
