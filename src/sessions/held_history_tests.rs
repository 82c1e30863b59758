//! Random histories of a site with sessions of its own, whose cookie is held: a browser with parallel requests, lost
//! and late answers, and an attacker who has planted its token and goes on with it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::{
    Arrival, HeldResponse, RequestGuard, ResponseKind, Sessions, SetHeld, Shared, TouchPolicy,
};
use crate::metrics::{Metrics, SessionTokens};
use crate::secret::Secret;
use crate::session::cookie::Attributes;
use crate::session::held::{CookieRequest, Identity, Lifetime, SetCookie};
use crate::session::key_ring::KeyRing;
use crate::session::navigation::{Navigation, Origin};
use crate::session::peer::Instance;
use crate::session::policy::Policy;
use crate::store::config::OnError;
use crate::store::memory::Memory;
use crate::time::{Clock, Timestamp};

const GRACE: Duration = Duration::from_mins(2);

/// A client, by its place in [`World::jars`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Browser,
    Attacker,
}

/// The next event. Its number selects one of the existing requests or responses.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send(Who, Navigation),
    /// The visitor sends the form with the password.
    LogIn,
    /// The visitor logs out.
    LogOut,
    /// The site answers a request.
    Respond(usize),
    Arrive(usize),
    Lose(usize),
    Pass(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Other,
    LogIn,
    LogOut,
}

struct Sent {
    who: Who,
    page: Page,
    guard: RequestGuard,
    /// The session of the site that the request was given.
    given: Option<String>,
    at: Timestamp,
}

struct Response {
    who: Who,
    cookie: Option<String>,
    at: Timestamp,
}

/// A site as PHP and Express make them: it draws another id at a log-in, and may set its cookie with each answer.
struct Site {
    is_rolling: bool,
    next: u32,
    known: HashSet<String>,
    logged_in: HashSet<String>,
}

impl Site {
    fn create(&mut self) -> String {
        self.next += 1;
        let id = format!("s{}", self.next);
        self.known.insert(id.clone());
        id
    }

    /// Answers a request, and returns the value that its cookie is set to; an empty one deletes it.
    fn answer(&mut self, given: Option<&String>, page: Page) -> Option<String> {
        let known = given.filter(|id| self.known.contains(*id)).cloned();
        match (page, known) {
            (Page::LogIn, old) => {
                if let Some(old) = old {
                    self.known.remove(&old);
                    self.logged_in.remove(&old);
                }
                let id = self.create();
                self.logged_in.insert(id.clone());
                Some(id)
            }
            (Page::LogOut, Some(old)) => {
                self.known.remove(&old);
                self.logged_in.remove(&old);
                Some(String::new())
            }
            (_, Some(id)) => self.is_rolling.then_some(id),
            (_, None) => Some(self.create()),
        }
    }
}

struct World {
    sessions: Sessions,
    clock: Clock,
    site: Site,
    jars: [Option<String>; 2],
    requests: Vec<Sent>,
    responses: Vec<Response>,
}

impl World {
    fn new(is_rolling: bool) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let shared = Shared {
            ring: Arc::new(KeyRing::new(&Zeroizing::new([7; 32]), &[])),
            attributes: Attributes::default(),
            policy: Policy { rotation_grace: GRACE, ..Policy::default() },
            clock: clock.clone(),
            session_tokens: SessionTokens::default(),
            metrics: Metrics::new(),
            new_sessions: Arc::default(),
            in_flight: Arc::default(),
            turns: Arc::default(),
            instance: Instance { number: 1, authority: String::new() },
        };
        let store = Arc::new(Memory::new(Memory::DEFAULT_MAX_BYTES, Metrics::new()));
        Self {
            sessions: Sessions::new(Some(store), Arc::new(shared)),
            clock,
            site: Site { is_rolling, next: 0, known: HashSet::new(), logged_in: HashSet::new() },
            jars: [None, None],
            requests: Vec::new(),
            responses: Vec::new(),
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Send(who, navigation) => self.send(who, navigation, Page::Other).await,
            Step::LogIn => self.send(Who::Browser, Navigation::Form, Page::LogIn).await,
            Step::LogOut => self.send(Who::Browser, Navigation::Form, Page::LogOut).await,
            Step::Respond(at) => self.respond(at).await,
            Step::Arrive(at) => self.arrive(at),
            Step::Lose(at) => drop(pick(&mut self.responses, at)),
            Step::Pass(duration) => self.pass(duration),
        }
    }

    async fn send(&mut self, who: Who, navigation: Navigation, page: Page) {
        let arrival = Arrival {
            origin: Origin { navigation, withholds_cookie: false },
            cookies: self.jars[who as usize].iter().cloned().map(Secret::new).collect(),
            touch: TouchPolicy::OnUse,
            header_exchange: None,
            turn_within: None,
            on_error: OnError::Fail,
            address: None,
            client: None,
        };
        let opened = self.sessions.opener().open(arrival).await.expect("the store answers");
        let request = CookieRequest { host: "a.example", path: "/", now: self.clock.now() };
        let held = opened.guard.session().held_cookies(request);
        let given = held.first().map(|(_, value)| value.reveal().to_owned());
        if let (Who::Attacker, Some(id)) = (who, &given) {
            assert!(!self.site.logged_in.contains(id), "the planted token opens the log-in");
        }
        self.requests.push(Sent { who, page, guard: opened.guard, given, at: self.clock.now() });
    }

    async fn respond(&mut self, at: usize) {
        let Some(Sent { who, page, guard, given, .. }) = pick(&mut self.requests, at) else {
            return;
        };
        let value = self.site.answer(given.as_ref(), page);
        let cookies = value.map(|value| SetHeld { cookie: cookie(&value), rotates: true });
        let held =
            HeldResponse { cookies: cookies.into_iter().collect(), ..HeldResponse::default() };
        let committed = guard.session().commit(ResponseKind::Normal, None, Some(&held)).await;
        committed.held.expect("kept or dropped");
        let cookie = committed.cookie.map(|line| line.to_str().expect("ASCII").to_owned());
        self.responses.push(Response { who, cookie, at: self.clock.now() });
    }

    fn arrive(&mut self, at: usize) {
        let Some(Response { who, cookie: Some(line), .. }) = pick(&mut self.responses, at) else {
            return;
        };
        let value = line.split(';').next().and_then(|pair| pair.split_once('='));
        let value = value.map(|(_, value)| value.to_owned()).filter(|value| !value.is_empty());
        self.jars[who as usize] = value;
    }

    fn pass(&mut self, duration: Duration) {
        let latest = self.clock.now() + duration;
        self.responses.retain(|response| latest < response.at + GRACE);
        self.requests.retain(|sent| latest < sent.at + GRACE);
        self.clock.advance(duration);
    }

    /// Sends a request whose answer arrives, and returns whether it was given a log-in.
    async fn visit(&mut self, navigation: Navigation, page: Page) -> bool {
        self.send(Who::Browser, navigation, page).await;
        let given = self.requests.last().and_then(|sent| sent.given.clone());
        let is_in = given.is_some_and(|id| self.site.logged_in.contains(&id));
        self.respond(self.requests.len() - 1).await;
        self.arrive(self.responses.len() - 1);
        is_in
    }
}

fn cookie(value: &str) -> SetCookie {
    let text = |text: &str| text.to_owned();
    let lifetime = match value {
        "" => Lifetime::Until(Timestamp::default()),
        _ => Lifetime::Browser,
    };
    SetCookie {
        identity: Identity { name: text("SID"), domain: text("a.example"), path: text("/") },
        is_host_only: true,
        value: Secret::new(text(value)),
        lifetime,
        is_http_only: true,
        same_site: None,
    }
}

fn pick<T>(all: &mut Vec<T>, at: usize) -> Option<T> {
    let index = at.checked_rem(all.len())?;
    Some(all.remove(index))
}

fn any_step() -> impl Strategy<Value = Step> {
    let who = prop_oneof![2 => Just(Who::Browser), 1 => Just(Who::Attacker)];
    let navigation = prop_oneof![Just(Navigation::Safe), Just(Navigation::None)];
    prop_oneof![
        5 => (who, navigation).prop_map(|(who, navigation)| Step::Send(who, navigation)),
        2 => Just(Step::LogIn),
        1 => Just(Step::LogOut),
        6 => any::<usize>().prop_map(Step::Respond),
        4 => any::<usize>().prop_map(Step::Arrive),
        2 => any::<usize>().prop_map(Step::Lose),
        2 => (1..GRACE.as_secs()).prop_map(|seconds| Step::Pass(Duration::from_secs(seconds))),
        1 => (1_u64..40).prop_map(|hours| Step::Pass(Duration::from_hours(hours))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever has happened, a planted token never opens a log-in, and who logs in twice is logged in.
    #[test]
    fn held_log_ins_are_neither_lost_nor_stolen(
        is_rolling: bool,
        is_planted: bool,
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        crate::log::begin_for_tests();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new(is_rolling);
            world.take(Step::Send(Who::Attacker, Navigation::Safe)).await;
            world.take(Step::Respond(0)).await;
            world.take(Step::Arrive(0)).await;
            if is_planted {
                world.jars[Who::Browser as usize] = world.jars[Who::Attacker as usize].clone();
            }
            for step in steps {
                world.take(step).await;
            }
            // What is still on its way is lost.
            world.requests.clear();
            world.responses.clear();
            let mut tries = 0;
            while !world.visit(Navigation::Safe, Page::Other).await {
                tries += 1;
                assert!(tries <= 2, "logged in {} times and still not", tries - 1);
                world.visit(Navigation::Form, Page::LogIn).await;
            }
            world.take(Step::Send(Who::Attacker, Navigation::Safe)).await;
        });
    }
}
