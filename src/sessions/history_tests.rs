//! Random histories of one browser: parallel requests, log-ins, rotations and flushes, responses that
//! are lost, delayed or overtaken, and steps of the clock.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use proptest::prelude::*;

use super::request::CookieOutcome;
use super::{
    Arrival, ChangeRequest, Failure, RequestGuard, ResponseKind, Sessions, Shared, TouchPolicy,
};
use crate::audit::{By, Source};
use crate::secret::Secret;
use crate::session::id::{Id, PublicId};
use crate::session::navigation::{Navigation, Origin};
use crate::session::patch::{Op, Patch, PrincipalChange, Rotate};
use crate::session::policy::Policy;
use crate::session::record::{Key, Principal};
use crate::session::token::CookieToken;
use crate::store::Want;
use crate::store::config::OnError;
use crate::store::memory::Memory;
use crate::time::{Clock, Timestamp};

/// The next event. Its number selects one of the existing requests or responses.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The browser sends a request with its cookie.
    Send(Navigation),
    /// A request's upstream writes a value.
    Write(usize),
    /// A request's upstream logs in as one of two users, which may flush first.
    LogIn(usize, bool, bool),
    /// A request's upstream rotates.
    Rotate(usize),
    /// A request's upstream destroys the session.
    Destroy(usize),
    /// A request's response leaves.
    Respond(usize),
    /// A response arrives.
    Arrive(usize),
    /// A response is lost.
    Lose(usize),
    /// Time passes. Requests and responses that are older than the grace period are lost.
    Pass(Duration),
}

struct Sent {
    guard: RequestGuard,
    at: Timestamp,
    presented: Option<Id>,
}

struct Response {
    cookie: Option<HeaderValue>,
    sent_at: Timestamp,
}

struct World {
    sessions: Sessions,
    clock: Clock,
    jar: Option<String>,
    requests: Vec<Sent>,
    responses: Vec<Response>,
    destroyed: HashSet<Id>,
    /// The last log-in: its time, the session that it replaced, and its own cookie.
    logged_in: Option<(Timestamp, Option<Id>, CookieToken)>,
}

const GRACE: Duration = Duration::from_mins(2);

impl World {
    fn new() -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let policy =
            Policy { rotate_every: Some(GRACE), rotation_grace: GRACE, ..Policy::default() };
        let shared = Shared::for_tests(&clock, policy);
        let store = Arc::new(Memory::for_tests(Memory::DEFAULT_MAX_BYTES));
        Self {
            sessions: Sessions::new(Some(store), shared),
            clock,
            jar: None,
            requests: Vec::new(),
            responses: Vec::new(),
            destroyed: HashSet::new(),
            logged_in: None,
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Send(navigation) => self.send(navigation).await,
            Step::Write(at) => {
                let value = Op::Increment(Key::new("n").expect("a key"), 1);
                self.change(at, Patch::of(value)).await;
            }
            Step::Rotate(at) => {
                self.change(at, Patch::of_rotation(Rotate::Token)).await;
            }
            Step::Destroy(at) => self.change(at, Patch { destroy: true, ..Patch::default() }).await,
            Step::LogIn(at, alice, flushes) => self.log_in(at, alice, flushes).await,
            Step::Respond(at) => self.respond(at).await,
            Step::Arrive(at) => self.arrive(at),
            Step::Lose(at) => drop(pick(&mut self.responses, at)),
            Step::Pass(duration) => self.pass(duration),
        }
    }

    async fn send(&mut self, navigation: Navigation) {
        let arrival = Arrival {
            origin: Origin { navigation, withholds_cookie: false },
            cookies: self.jar.iter().cloned().map(Secret::new).collect(),
            header_exchange: None,
            touch: TouchPolicy::OnUse,
            on_error: OnError::Fail,
            turn_within: None,
            address: None,
            client: None,
            source: Source::default(),
        };
        let opened = self.sessions.opener().open(arrival).await.expect("the store answers");
        let presented = self.jar.as_deref().map(|text| self.token(text).id);
        if let Some(id) = opened.guard.session().presented_id() {
            assert!(!self.destroyed.contains(&id.place), "a destroyed session is served again");
        }
        self.requests.push(Sent { guard: opened.guard, at: self.clock.now(), presented });
    }

    async fn change(&mut self, at: usize, patch: Patch) {
        let Some(sent) = look(&self.requests, at) else { return };
        let session = sent.guard.session().clone();
        let before = session.current_id().map(|id| id.place);
        let changed = session.apply(ChangeRequest::new(&patch)).await;
        if patch.destroy && changed.is_ok_and(|changed| changed.session.is_some()) {
            self.destroyed.extend(before);
        }
    }

    async fn log_in(&mut self, at: usize, alice: bool, flushes: bool) {
        let Some(sent) = look(&self.requests, at) else { return };
        let session = sent.guard.session().clone();
        let presented = sent.presented;
        let before = session.current_id().map(|id| id.place);
        let principal =
            Principal::new(if alice { "alice" } else { "bob" }).map(PrincipalChange::LogIn);
        let patch = Patch { principal, destroy: flushes, ..Patch::default() };
        let changed =
            session.apply(ChangeRequest::new(&patch)).await.expect("a log-in always succeeds");
        let (id, record) = changed.session.expect("a log-in leaves a session");
        // Authority a token that was rotated away it ends nothing.
        if let Some(before) = before.filter(|_| flushes)
            && !self.lives(before).await
        {
            self.destroyed.insert(before);
        }
        let token = CookieToken { id, generation: record.meta.generation };
        // If another user's session lives on, the browser has two, and neither replaces the other.
        let lives_on = match presented.filter(|presented| *presented != id) {
            Some(presented) => self.lives(presented).await,
            None => false,
        };
        self.logged_in = Some((self.clock.now(), presented.filter(|_| !lives_on), token));
    }

    async fn lives(&self, id: Id) -> bool {
        match self
            .sessions
            .directory(By::Service)
            .expect("there is a store")
            .find(PublicId { place: id, counter: 0 }, Want::Meta)
            .await
        {
            Ok(_) => true,
            Err(Failure::NoSuchSession) => false,
            Err(failure) => panic!("{failure}"),
        }
    }

    async fn respond(&mut self, at: usize) {
        let Some(sent) = pick(&mut self.requests, at) else { return };
        let session = sent.guard.session();
        let cookie = session.commit(ResponseKind::Normal, None, None).await.cookie;
        self.check_cookie(&sent, cookie.as_ref());
        self.responses.push(Response { cookie, sent_at: self.clock.now() });
    }

    /// Checks that no response after a log-in replaces or deletes the log-in's cookie, if its request
    /// brought that cookie, or the one that the log-in's request brought. A request that has changed
    /// its own binding since may do so.
    fn check_cookie(&self, sent: &Sent, cookie: Option<&HeaderValue>) {
        let Some((at, replaced, new)) = self.logged_in else { return };
        let Some(line) = cookie else { return };
        let concerned = sent.presented.is_some()
            && (sent.presented == replaced || sent.presented == Some(new.id));
        let request = &sent.guard.session().request;
        let asked_itself =
            request.state.try_read().is_ok_and(|state| state.has_moved(request.token.bound));
        // A token that no longer names a session starts again.
        let unknown = request.outcome == CookieOutcome::Unknown;
        if !concerned || asked_itself || unknown || self.clock.now() > at + GRACE {
            return;
        }
        match self.set_by(line) {
            Some(token) => assert!(
                token.id == new.id && token.generation >= new.generation,
                "{token:?} over {new:?}"
            ),
            None => assert!(
                self.destroyed.contains(&new.id) || sent.presented == Some(new.id),
                "a deletion over {new:?}"
            ),
        }
    }

    fn arrive(&mut self, at: usize) {
        let Some(Response { cookie: Some(line), .. }) = pick(&mut self.responses, at) else {
            return;
        };
        self.jar = self.set_by(&line).map(|token| {
            let shared = self.sessions.shared();
            token.sign(&shared.ring, &shared.attributes.name).reveal().to_owned()
        });
    }

    fn pass(&mut self, duration: Duration) {
        let latest = self.clock.now() + duration;
        self.responses.retain(|response| latest < response.sent_at + GRACE);
        self.requests.retain(|sent| latest < sent.at + GRACE);
        self.clock.advance(duration);
    }

    fn token(&self, text: &str) -> CookieToken {
        let shared = self.sessions.shared();
        CookieToken::verify(&shared.ring, &shared.attributes.name, text.as_bytes())
            .expect("signed with this key")
            .0
    }

    /// Returns the token that a Set-Cookie sets; `None` if it deletes.
    fn set_by(&self, line: &HeaderValue) -> Option<CookieToken> {
        let text = line.to_str().expect("ASCII");
        let value = text.split(';').next()?.split_once('=')?.1;
        (!value.is_empty()).then(|| self.token(value))
    }

    /// Returns whether the browser's cookie opens its session.
    async fn is_in(&mut self) -> bool {
        self.send(Navigation::Safe).await;
        let sent = self.requests.pop().expect("just sent");
        matches!(sent.guard.session().request.outcome, CookieOutcome::Session { .. })
    }
}

fn look<T>(all: &[T], at: usize) -> Option<&T> {
    all.get(at.checked_rem(all.len())?)
}

fn pick<T>(all: &mut Vec<T>, at: usize) -> Option<T> {
    let index = at.checked_rem(all.len())?;
    Some(all.remove(index))
}

fn quiet_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![Just(Navigation::Safe), Just(Navigation::None)].prop_map(Step::Send),
        2 => any::<usize>().prop_map(Step::Write),
        4 => any::<usize>().prop_map(Step::Respond),
        3 => any::<usize>().prop_map(Step::Arrive),
        2 => any::<usize>().prop_map(Step::Lose),
        2 => (1..GRACE.as_secs()).prop_map(|seconds| Step::Pass(Duration::from_secs(seconds))),
        1 => (1_u64..40).prop_map(|hours| Step::Pass(Duration::from_hours(hours))),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => quiet_step(),
        1 => any::<usize>().prop_map(Step::Rotate),
        1 => any::<usize>().prop_map(Step::Destroy),
        2 => (any::<usize>(), any::<bool>(), any::<bool>()).prop_map(|(at, alice, flushes)| Step::LogIn(at, alice, flushes)),
    ]
}

fn block_on(future: impl Future<Output = ()>) {
    crate::log::begin_for_tests();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future);
}

/// A renewed cookie of one generation must not replace that of its successor.
#[test]
fn late_cookie_does_not_replace_its_successor() {
    let day = Duration::from_hours(24);
    let steps = [
        Step::Send(Navigation::Safe),
        Step::Respond(0),
        Step::Arrive(0),
        Step::Pass(day),
        Step::Send(Navigation::Safe),
        Step::Send(Navigation::Safe),
        Step::Respond(0),
        Step::Pass(Duration::from_secs(1)),
        Step::Respond(0),
        Step::Arrive(1),
        Step::Send(Navigation::Safe),
        Step::Arrive(0),
        Step::Respond(0),
        Step::Pass(Duration::from_hours(1)),
    ];
    block_on(async {
        let mut world = World::new();
        for step in
            [Step::Send(Navigation::Safe), Step::Write(0), Step::Respond(0), Step::Arrive(0)]
        {
            world.take(step).await;
        }
        for step in [Step::Pass(Duration::from_hours(1))].into_iter().chain(steps) {
            world.take(step).await;
            assert!(world.is_in().await, "the browser's cookie opens nothing after {step:?}");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn periodic_rotation_keeps_the_session(steps in prop::collection::vec(quiet_step(), 1..120)) {
        block_on(async {
            let mut world = World::new();
            // One response that has arrived, so that the browser has a cookie.
            for step in [Step::Send(Navigation::Safe), Step::Write(0), Step::Respond(0), Step::Arrive(0)] {
                world.take(step).await;
            }
            for step in steps {
                world.take(step).await;
                assert!(world.is_in().await, "the browser's cookie opens nothing after {step:?}");
            }
        });
    }

    #[test]
    fn log_in_succeeds_and_its_cookie_stays(steps in prop::collection::vec(any_step(), 1..120)) {
        block_on(async {
            let mut world = World::new();
            for step in steps {
                world.take(step).await;
            }
        });
    }
}
