//! Random histories of a site with sessions of its own, whose cookie is held: a browser with parallel requests, lost
//! and late answers, and an attacker who has planted its token and goes on with it. The same histories are played
//! without the proxy, against browsers that have the site's cookie.

use std::collections::HashSet;
use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::hold::{LOST_AFTER, LogIn};
use super::request::CookieOutcome;
use super::{
    Arrival, HeldResponse, RequestGuard, ResponseKind, Sessions, SetHeld, Shared, TouchPolicy,
};
use crate::audit::Source;
use crate::secret::Secret;
use crate::session::held::{CookieRequest, Identity, Lifetime, SetCookie};
use crate::session::navigation::{Navigation, Origin};
use crate::session::policy::Policy;
use crate::store::config::OnError;
use crate::store::memory::Memory;
use crate::time::{Clock, Timestamp};

const GRACE: Duration = Duration::from_mins(2);

/// Histories that are played with and without the proxy.
const HISTORIES: u32 = 2000;

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
    number: usize,
    who: Who,
    page: Page,
    /// `None` without the proxy.
    guard: Option<RequestGuard>,
    /// The session of the site that the request was given.
    given: Option<String>,
    brings_session: bool,
    at: Timestamp,
}

struct Response {
    /// The number of its request.
    number: usize,
    /// The number of responses before it.
    order: usize,
    who: Who,
    page: Page,
    cookie: Option<String>,
    brought_session: bool,
    at: Timestamp,
}

/// What a site does with its session id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It draws another one at a log-in, as PHP's sites do.
    Renewing,
    /// It also sets its cookie with each answer, as Express does with `rolling`.
    Rolling,
    /// It keeps it at a log-in, as old sites in Java and ASP.NET do. The route has `rotate_on`.
    Keeping,
}

struct Site {
    kind: Kind,
    next: u32,
    known: HashSet<String>,
    logged_in: HashSet<String>,
    /// Those that a log-in has replaced.
    replaced: HashSet<String>,
}

impl Site {
    /// Returns whether it knows a session, or did until a log-in.
    fn has_known(&self, id: &str) -> bool {
        self.known.contains(id) || self.replaced.contains(id)
    }

    fn create(&mut self) -> String {
        self.next += 1;
        let id = format!("s{}", self.next);
        self.known.insert(id.clone());
        id
    }

    fn remove(&mut self, id: &str) {
        self.known.remove(id);
        self.logged_in.remove(id);
    }

    /// Answers a request, and returns the value that its cookie is set to; an empty one deletes it.
    fn answer(&mut self, given: Option<&String>, page: Page) -> Option<String> {
        let known = given.filter(|id| self.known.contains(*id)).cloned();
        match (page, known) {
            (Page::LogIn, Some(old)) if self.kind == Kind::Keeping => {
                self.logged_in.insert(old);
                None
            }
            (Page::LogIn, old) => {
                if let Some(old) = old {
                    self.remove(&old);
                    self.replaced.insert(old);
                }
                let id = self.create();
                self.logged_in.insert(id.clone());
                Some(id)
            }
            (Page::LogOut, Some(old)) => {
                self.remove(&old);
                Some(String::new())
            }
            (_, Some(id)) => (self.kind == Kind::Rolling).then_some(id),
            (_, None) => Some(self.create()),
        }
    }
}

/// What the visitor knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visitor {
    LoggedOut,
    /// The answer to this request has not arrived.
    LoggingIn(usize),
    LoggedIn,
    /// A page was anonymous, although the visitor has logged in.
    Lost,
}

/// What happened in histories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    log_ins: u32,
    /// Log-ins whose answer had arrived, and which a later page did not have.
    lost: u32,
    /// Pages of such visitors.
    anonymous: u32,
    /// Log-ins that were replaced by an answer which had been sent before that of the log-in, and arrived after it.
    crossed: u32,
    /// Log-ins that were replaced by the answer to a request that had brought no session, and so got one.
    restarted: u32,
    /// Histories in which the planted token opened a log-in.
    stolen: u32,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log_ins, lost, anonymous, crossed, restarted, stolen } = self;
        write!(
            f,
            "{lost} of {log_ins} log-ins lost, {anonymous} anonymous pages, {stolen} planted tokens survived; \
             not counted there: {crossed} crossed, {restarted} replaced by a first answer"
        )
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.log_ins += other.log_ins;
        self.lost += other.lost;
        self.anonymous += other.anonymous;
        self.crossed += other.crossed;
        self.restarted += other.restarted;
        self.stolen += other.stolen;
    }
}

struct World {
    /// `None` without the proxy.
    sessions: Option<Sessions>,
    clock: Clock,
    site: Site,
    jars: [Option<String>; 2],
    requests: Vec<Sent>,
    responses: Vec<Response>,
    sent: usize,
    responded: usize,
    /// The number of the last form.
    form: usize,
    /// The place in the order of responses of the one that set the browser's cookie.
    jar_order: usize,
    /// That one answered a request that had brought no session, and was no log-in.
    is_jar_restarted: bool,
    /// The place of the answer to the last log-in.
    log_in_order: usize,
    visitor: Visitor,
    counts: Counts,
    /// Forms are sent in one tab: another form gives up the answer to the one before, and the page to which the answer
    /// redirects is requested at once.
    has_form_tab: bool,
}

impl World {
    fn new(kind: Kind) -> Self {
        let mut world = Self::without_proxy(kind);
        let policy = Policy { rotation_grace: GRACE, ..Policy::default() };
        let shared = Shared::for_tests(&world.clock, policy);
        let store = Arc::new(Memory::for_tests(Memory::DEFAULT_MAX_BYTES));
        world.sessions = Some(Sessions::new(Some(store), shared));
        world
    }

    fn without_proxy(kind: Kind) -> Self {
        Self {
            sessions: None,
            clock: Clock::manual(Timestamp::from_millis(1_800_000_000_000)),
            site: Site {
                kind,
                next: 0,
                known: HashSet::new(),
                logged_in: HashSet::new(),
                replaced: HashSet::new(),
            },
            jars: [None, None],
            requests: Vec::new(),
            responses: Vec::new(),
            sent: 0,
            responded: 0,
            form: 0,
            jar_order: 0,
            is_jar_restarted: false,
            log_in_order: 0,
            visitor: Visitor::LoggedOut,
            counts: Counts::default(),
            has_form_tab: false,
        }
    }

    /// Makes the browser send its forms in one tab, which has shown a page.
    async fn with_form_tab(mut self) -> Self {
        self.has_form_tab = true;
        for _ in 0..2 {
            self.visit(Navigation::Safe, Page::Other).await;
        }
        self
    }

    /// Plays a history in which the attacker has got its token before, and may have planted it.
    async fn play(&mut self, is_planted: bool, steps: Vec<Step>) {
        self.take(Step::Send(Who::Attacker, Navigation::Safe)).await;
        self.take(Step::Respond(0)).await;
        self.take(Step::Arrive(0)).await;
        if is_planted {
            self.jars[Who::Browser as usize] = self.jars[Who::Attacker as usize].clone();
        }
        for step in steps {
            self.take(step).await;
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Send(who, navigation) => self.send(who, navigation, Page::Other).await,
            Step::LogIn | Step::LogOut if self.waits_for_form() => {}
            Step::LogIn => self.send(Who::Browser, Navigation::Form, Page::LogIn).await,
            Step::LogOut => self.send(Who::Browser, Navigation::Form, Page::LogOut).await,
            Step::Respond(at) => self.respond(at).await,
            Step::Arrive(at) => self.arrive(at).await,
            Step::Lose(at) => drop(pick(&mut self.responses, at)),
            Step::Pass(duration) => self.pass(duration),
        }
    }

    /// Returns whether the visitor waits for the answer to a form. After a double click on a site that keeps its session
    /// id, the second request is not given what the first one has logged in.
    fn waits_for_form(&self) -> bool {
        let is_form = |page: Page| page != Page::Other;
        let is_pending = self.requests.iter().any(|sent| is_form(sent.page))
            || self.responses.iter().any(|response| is_form(response.page));
        self.has_form_tab && self.site.kind == Kind::Keeping && is_pending
    }

    async fn send(&mut self, who: Who, navigation: Navigation, page: Page) {
        let jar = self.jars[who as usize].clone();
        let (guard, given, brings_session) = if let Some(sessions) = &self.sessions {
            let guard = open(sessions, jar, navigation).await;
            let request = CookieRequest { host: "a.example", path: "/", now: self.clock.now() };
            let held = guard.session().held_cookies(request);
            let given = held.first().map(|(_, value)| value.reveal().to_owned());
            let brings_session = brings_session(&guard.session().request.outcome, self.clock.now());
            (Some(guard), given, brings_session)
        } else {
            let brings_session = jar.as_ref().is_some_and(|id| self.site.has_known(id));
            (None, jar, brings_session)
        };
        let is_in = given.as_ref().is_some_and(|id| self.site.logged_in.contains(id));
        let number = self.sent;
        match who {
            Who::Attacker => self.counts.stolen |= u32::from(is_in),
            Who::Browser => self.note(number, page, is_in),
        }
        self.sent += 1;
        if page != Page::Other {
            self.form = number;
        }
        self.requests.push(Sent {
            number,
            who,
            page,
            guard,
            given,
            brings_session,
            at: self.clock.now(),
        });
    }

    /// Notes what the visitor learns from a request of this number.
    fn note(&mut self, number: usize, page: Page, is_in: bool) {
        self.visitor = match (page, self.visitor) {
            (Page::LogIn, _) => Visitor::LoggingIn(number),
            (Page::LogOut, _) => Visitor::LoggedOut,
            (Page::Other, Visitor::LoggedIn | Visitor::Lost) if is_in => Visitor::LoggedIn,
            (Page::Other, Visitor::LoggedIn) if self.jar_order < self.log_in_order => {
                self.counts.crossed += 1;
                Visitor::LoggedOut
            }
            (Page::Other, Visitor::LoggedIn) if self.is_jar_restarted => {
                self.counts.restarted += 1;
                Visitor::LoggedOut
            }
            (Page::Other, Visitor::LoggedIn | Visitor::Lost) => {
                self.counts.lost += u32::from(self.visitor == Visitor::LoggedIn);
                self.counts.anonymous += 1;
                Visitor::Lost
            }
            (Page::Other, visitor) => visitor,
        };
    }

    async fn respond(&mut self, at: usize) {
        let Some(Sent { number, who, page, guard, given, brings_session, .. }) =
            pick(&mut self.requests, at)
        else {
            return;
        };
        let value = self.site.answer(given.as_ref(), page);
        let cookie = match guard {
            Some(guard) => self.commit(&guard, page, value).await,
            None => value.map(|value| format!("SID={value}")),
        };
        let order = self.responded;
        self.responded += 1;
        self.responses.push(Response {
            number,
            order,
            who,
            page,
            cookie,
            brought_session: brings_session,
            at: self.clock.now(),
        });
    }

    /// Commits the session of a request whose answer sets this value, and returns the Set-Cookie line.
    async fn commit(
        &self,
        guard: &RequestGuard,
        page: Page,
        value: Option<String>,
    ) -> Option<String> {
        let has_rotate_on = self.site.kind == Kind::Keeping;
        let is_named = has_rotate_on && page == Page::LogIn;
        let cookies = value.map(|value| SetHeld { cookie: cookie(&value), rotates: true });
        let held = HeldResponse {
            cookies: cookies.into_iter().collect(),
            log_in: if is_named { LogIn::Named } else { LogIn::No },
            has_rotate_on,
            ..HeldResponse::default()
        };
        let committed = guard.session().commit(ResponseKind::Normal, None, Some(&held)).await;
        committed.held.expect("kept or dropped");
        committed.cookie.map(|line| line.to_str().expect("ASCII").to_owned())
    }

    async fn arrive(&mut self, at: usize) {
        let Some(Response { number, order, who, page, cookie, brought_session, .. }) =
            pick(&mut self.responses, at)
        else {
            return;
        };
        if self.has_form_tab && page != Page::Other && number != self.form {
            return;
        }
        if who == Who::Browser && self.visitor == Visitor::LoggingIn(number) {
            self.visitor = Visitor::LoggedIn;
            self.log_in_order = order;
            self.counts.log_ins += 1;
        }
        if let Some(line) = cookie {
            let value = line.split(';').next().and_then(|pair| pair.split_once('='));
            let value = value.map(|(_, value)| value.to_owned()).filter(|value| !value.is_empty());
            self.jars[who as usize] = value;
            if who == Who::Browser {
                self.jar_order = order;
                self.is_jar_restarted = !brought_session && page != Page::LogIn;
            }
        }
        if self.has_form_tab && page != Page::Other {
            self.send(who, Navigation::Safe, Page::Other).await;
            self.respond(self.requests.len() - 1).await;
        }
    }

    fn pass(&mut self, duration: Duration) {
        let latest = self.clock.now() + duration;
        // A log-in whose answer takes longer counts as lost.
        let longest = if self.has_form_tab { LOST_AFTER } else { GRACE };
        self.responses.retain(|response| latest < response.at + longest);
        self.requests.retain(|sent| latest < sent.at + GRACE);
        self.clock.advance(duration);
    }

    /// Sends a request whose answer arrives, and returns whether it was given a log-in.
    async fn visit(&mut self, navigation: Navigation, page: Page) -> bool {
        self.send(Who::Browser, navigation, page).await;
        let given = self.requests.last().and_then(|sent| sent.given.clone());
        let is_in = given.is_some_and(|id| self.site.logged_in.contains(&id));
        self.respond(self.requests.len() - 1).await;
        self.arrive(self.responses.len() - 1).await;
        is_in
    }
}

/// Returns whether a request has brought a session: one whose log-in seems lost is as good as none.
fn brings_session(outcome: &CookieOutcome, now: Timestamp) -> bool {
    match outcome {
        CookieOutcome::Session { .. } => true,
        CookieOutcome::Stale { meta, .. } => {
            !meta.unpresented || now < meta.generation_since + LOST_AFTER
        }
        _ => false,
    }
}

async fn open(sessions: &Sessions, jar: Option<String>, navigation: Navigation) -> RequestGuard {
    let arrival = Arrival {
        origin: Origin { navigation, withholds_cookie: false },
        cookies: jar.into_iter().map(Secret::new).collect(),
        touch: TouchPolicy::OnUse,
        header_exchange: None,
        turn_within: None,
        on_error: OnError::Fail,
        address: None,
        client: None,
        source: Source::default(),
    };
    sessions.opener().open(arrival).await.expect("the store answers").guard
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
        2 => (1_u64..5).prop_map(|seconds| Step::Pass(Duration::from_secs(seconds))),
        1 => (1..GRACE.as_secs()).prop_map(|seconds| Step::Pass(Duration::from_secs(seconds))),
        1 => (1_u64..40).prop_map(|hours| Step::Pass(Duration::from_hours(hours))),
    ]
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Renewing), Just(Kind::Rolling), Just(Kind::Keeping)]
}

fn any_history() -> impl Strategy<Value = (Kind, bool, Vec<Step>)> {
    (any_kind(), any::<bool>(), prop::collection::vec(any_step(), 1..120))
}

fn block_on(future: impl Future<Output = ()>) {
    crate::log::begin_for_tests();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever has happened, a planted token never opens a log-in, and who logs in twice is logged in.
    #[test]
    fn held_log_ins_are_neither_lost_nor_stolen(
        kind in any_kind(),
        is_planted: bool,
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        block_on(async {
            let mut world = World::new(kind);
            world.play(is_planted, steps).await;
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
            assert_eq!(world.counts.stolen, 0, "the planted token opens the log-in");
        });
    }

    /// A log-in whose answer has arrived is there until the visitor logs out.
    #[test]
    fn arrived_log_ins_stay(history in any_history()) {
        block_on(async {
            let (kind, is_planted, steps) = history;
            let mut world = World::with_form_tab(World::new(kind)).await;
            world.play(is_planted, steps).await;
            assert_eq!(world.counts.lost, 0);
        });
    }
}

#[test]
fn browsers_without_proxy_lose_log_ins() {
    let mut runner = TestRunner::deterministic();
    let (mut with, mut without) = (Counts::default(), Counts::default());
    block_on(async {
        for _ in 0..HISTORIES {
            let history = any_history().new_tree(&mut runner).expect("a history");
            let (kind, is_planted, steps) = history.current();
            for (world, counts) in
                [(World::new(kind), &mut with), (World::without_proxy(kind), &mut without)]
            {
                let mut world = World::with_form_tab(world).await;
                world.play(is_planted, steps.clone()).await;
                *counts += world.counts;
            }
        }
    });
    println!("{HISTORIES} histories; with the proxy: {with}; without: {without}");
    assert_eq!((with.lost, with.anonymous, with.stolen), (0, 0, 0));
    assert!(without.lost > 0 && without.anonymous > 0 && without.stolen > 0);
}
