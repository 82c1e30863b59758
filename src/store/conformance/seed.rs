//! Strategies for random histories. Steps are relative to the state that they will meet, e.g. "the
//! right version" or "one generation below"; the player resolves them.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::kit::{json, key};
use crate::session::patch::{Op, PrincipalChange, Proof, Rotate, Tombstone};
use crate::session::policy::Policy;
use crate::session::record::{Client, Key, Principal};

/// Number of sessions of a history. Few, so that steps affect each other.
pub(super) const SLOTS: usize = 3;

pub(super) const KEYS: [&str; 6] = ["a", "b", "v", "=", "+", "é \"\\\n\0🍪"];
const PRINCIPALS: [&str; 2] = ["ada", "bob:{x} é"];
const TEXTS: [&str; 18] = [
    "0",
    "1",
    "-1",
    "-0",
    "1.0",
    "1e3",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "\"1\"",
    "null",
    "[]",
    "[[],{}]",
    "[\"]\"]",
    "{\"b\":1,\"a\":[]}",
    "\"é🍪\\u0000\"",
    "\"forty bytes and more of text, for the limits\"",
];

const ARRAYS: [&str; 4] = ["[]", "[1]", "[[],{}]", "[\"]\",\"é\"]"];
const OBJECTS: [&str; 6] = [
    "{}",
    "[]",
    "{\"a\":1}",
    "{\"b\":null,\"c\":1e400}",
    "{\"a\":{\"x\":null,\"y\":[null]}}",
    "{\"\\u0061\":{\"z\":{}}}",
];

#[derive(Clone, Debug)]
pub(super) enum Step {
    Create(usize, RecordSeed),
    Load(usize, WantSeed),
    Patch(usize, PatchSeed, WantSeed),
    Use(usize, UseSeed),
    Remove(usize),
    List(Option<Principal>, usize),
    Sweep,
    Wait(Duration),
    /// Waits until this many milliseconds after the expiry of the entry.
    WaitForEnd(usize, i64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct UseSeed {
    /// Difference from the generation of the record.
    pub(super) away: i64,
    pub(super) touches: bool,
    pub(super) sets_cookie: bool,
    pub(super) proves: Proof,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum WantSeed {
    Meta,
    Value(usize),
    Before(usize),
    Values,
}

#[derive(Clone, Debug)]
pub(super) struct RecordSeed {
    pub(super) values: Vec<(Key, &'static str)>,
    pub(super) version: u64,
    pub(super) generation: u32,
    pub(super) age: Duration,
    pub(super) previous: Option<Duration>,
    pub(super) login: Option<Duration>,
    pub(super) principal: Option<Principal>,
    pub(super) former: Option<Principal>,
    /// Difference from the generation.
    pub(super) principal_since: Option<u32>,
    pub(super) id_counter: u16,
    pub(super) expiry: Option<ExpirySeed>,
    pub(super) withheld: bool,
    pub(super) unproven: bool,
    pub(super) client: Option<Client>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ExpirySeed {
    Policy,
    Idle(u64),
    BrowserClose(Option<u64>),
    /// Milliseconds from now.
    At(i64),
    Never,
}

#[derive(Clone, Debug)]
pub(super) struct PatchSeed {
    pub(super) version: Option<u64>,
    pub(super) kind: Kind,
    pub(super) authority: AuthoritySeed,
    pub(super) condition: Option<(usize, ConditionSeed)>,
    pub(super) limits: Option<(usize, usize)>,
    pub(super) touches: bool,
    pub(super) tombstone: Tombstone,
    pub(super) known: KnownSeed,
}

/// What the caller of a change knows of the session.
#[derive(Clone, Copy, Debug)]
pub(super) enum KnownSeed {
    Nothing,
    /// The session as it is.
    Current,
    /// The session as it was at its creation, or as a `Load` found it.
    Earlier,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Destroy,
    Change {
        ops: Vec<Op>,
        expiry: Option<ExpirySeed>,
        principal: Option<PrincipalChange>,
        rotate: Option<Rotate>,
        held: Option<HeldSeed>,
    },
}

/// A change of held cookies.
#[derive(Clone, Debug)]
pub(super) struct HeldSeed {
    pub(super) clears: bool,
    pub(super) sets: Vec<SetSeed>,
    pub(super) may_rotate: bool,
    pub(super) replaces: bool,
}

#[derive(Clone, Debug)]
pub(super) struct SetSeed {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) value: &'static str,
    /// Milliseconds from now.
    pub(super) lasts: Option<i64>,
    pub(super) rotates: bool,
    pub(super) nonce: [u8; 24],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum AuthoritySeed {
    /// A request whose token differs by this much from the generation of the record.
    Request(i64),
    /// A request whose stale token differs by this much.
    Stale(i64),
    /// A service that names the session by its id, or by an earlier or later one.
    Service(bool),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ConditionSeed {
    Missing,
    Present,
    RightTag,
    WrongTag,
}

fn any_key() -> impl Strategy<Value = Key> {
    select(&KEYS[..]).prop_map(key)
}

fn any_principal() -> impl Strategy<Value = Principal> {
    select(&PRINCIPALS[..]).prop_map(|name| Principal::new(name).expect("a principal"))
}

fn any_op() -> impl Strategy<Value = Op> {
    let text = || select(&TEXTS[..]).prop_map(json);
    let number = prop_oneof![
        4 => -2_i64..=2,
        1 => select(vec![i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX]),
        1 => any::<i64>(),
    ];
    prop_oneof![
        1 => Just(Op::Clear),
        1 => any_principal().prop_map(Op::ClearUnless),
        5 => (any_key(), text()).prop_map(|(key, text)| Op::Set(key, text)),
        2 => (any_key(), text()).prop_map(|(key, text)| Op::Default(key, text)),
        2 => any_key().prop_map(Op::Remove),
        5 => (any_key(), number).prop_map(|(key, by)| Op::Increment(key, by)),
        3 => (any_key(), select(&ARRAYS[..]))
            .prop_map(|(key, elements)| Op::Append(key, json(elements))),
        4 => (any_key(), select(&OBJECTS[..])).prop_map(|(key, object)| Op::Merge(key, json(object))),
    ]
}

fn any_expiry() -> impl Strategy<Value = ExpirySeed> {
    let seconds = || select(vec![1_u64, 7, 25, 3600, u64::MAX / 1000]);
    prop_oneof![
        2 => Just(ExpirySeed::Policy),
        2 => seconds().prop_map(ExpirySeed::Idle),
        2 => prop::option::of(seconds()).prop_map(ExpirySeed::BrowserClose),
        1 => select(vec![-3_600_000_i64, -1, 0, 1]).prop_map(ExpirySeed::At),
        2 => select(vec![5_000_i64, 50_000]).prop_map(ExpirySeed::At),
        2 => Just(ExpirySeed::Never),
    ]
}

pub(super) fn any_record() -> impl Strategy<Value = RecordSeed> {
    let ago = || (0_u64..4_000).prop_map(Duration::from_millis);
    let version = prop_oneof![
        any::<u64>(),
        0_u64..3,
        Just(u64::MAX),
        Just(u64::MAX - 1),
        select(vec![99_u64, 1_999, (1 << 53) - 1, i64::MAX.cast_unsigned()]),
    ];
    let client = (any::<Option<std::net::IpAddr>>(), "[ -~]{0,9}|é")
        .prop_map(|(address, user_agent)| Client { address, user_agent: user_agent.into() });
    let meta = (
        version,
        select(vec![1_u32, 2, 5, 100, u32::MAX - 2, u32::MAX - 1, u32::MAX]),
        ago(),
        prop::option::of(ago()),
        prop::option::of(ago()),
        (
            prop::option::of(any_principal()),
            prop::option::weighted(0.3, any_principal()),
            prop::option::of(0_u32..5),
            select(vec![0_u16, 0, 1, 255, u16::MAX - 1, u16::MAX]),
        ),
        prop::option::weighted(0.3, any_expiry()),
        (prop::bool::weighted(0.2), prop::bool::weighted(0.5)),
        prop::option::weighted(0.2, client),
    );
    let values = vec((any_key(), select(&TEXTS[..])), 0..4);
    (values, meta).prop_map(|(values, meta)| {
        let (version, generation, age, previous, login, owner, expiry, marks, client) = meta;
        let (principal, former, principal_since, id_counter) = owner;
        let (withheld, unproven) = marks;
        RecordSeed {
            values,
            version,
            generation,
            age,
            previous,
            login,
            principal,
            former,
            principal_since,
            id_counter,
            expiry,
            withheld,
            unproven,
            client,
        }
    })
}

fn any_held() -> impl Strategy<Value = HeldSeed> {
    let set = (
        select(vec!["PHPSESSID", "remember", "a"]),
        select(vec!["/", "/a"]),
        select(vec!["", "1", "2"]),
        prop::option::of(select(vec![-1_i64, 0, 1, 5_000, 3_600_000])),
        any::<bool>(),
        any::<[u8; 24]>(),
    )
        .prop_map(|(name, path, value, lasts, rotates, nonce)| SetSeed {
            name,
            path,
            value,
            lasts,
            rotates,
            nonce,
        });
    (prop::bool::weighted(0.1), vec(set, 0..4), prop::bool::weighted(0.8), any::<bool>()).prop_map(
        |(clears, sets, may_rotate, replaces)| HeldSeed { clears, sets, may_rotate, replaces },
    )
}

fn any_principal_change() -> impl Strategy<Value = PrincipalChange> {
    prop_oneof![
        2 => any_principal().prop_map(PrincipalChange::LogIn),
        1 => Just(PrincipalChange::LogOut),
    ]
}

fn any_patch() -> impl Strategy<Value = PatchSeed> {
    let change = (
        vec(any_op(), 0..5),
        prop::option::weighted(0.15, any_expiry()),
        prop::option::weighted(0.4, any_principal_change()),
        prop::option::weighted(0.2, select(vec![Rotate::Token, Rotate::Id])),
        prop::option::weighted(0.25, any_held()),
    )
        .prop_map(|(ops, expiry, principal, rotate, held)| Kind::Change {
            ops,
            expiry,
            principal,
            rotate,
            held,
        });
    let authority = prop_oneof![
        6 => Just(AuthoritySeed::Request(0)),
        1 => (-3_i64..=1).prop_map(AuthoritySeed::Request),
        3 => (-3_i64..=1).prop_map(AuthoritySeed::Stale),
        2 => prop::bool::weighted(0.8).prop_map(AuthoritySeed::Service),
    ];
    let condition = select(vec![
        ConditionSeed::Missing,
        ConditionSeed::Present,
        ConditionSeed::RightTag,
        ConditionSeed::RightTag,
        ConditionSeed::WrongTag,
    ]);
    (
        // Difference from the right version.
        prop::option::weighted(0.15, 0_u64..2),
        prop_oneof![1 => Just(Kind::Destroy), 20 => change],
        authority,
        prop::option::weighted(0.15, (0..KEYS.len(), condition)),
        prop::option::weighted(0.15, (0_usize..4, 0_usize..60)),
        any::<bool>(),
        select(vec![Tombstone::Leave, Tombstone::None]),
        select(vec![KnownSeed::Nothing, KnownSeed::Current, KnownSeed::Earlier]),
    )
        .prop_map(
            |(version, kind, authority, condition, limits, touches, tombstone, known)| PatchSeed {
                version,
                kind,
                authority,
                condition,
                limits,
                touches,
                tombstone,
                known,
            },
        )
}

fn any_want() -> impl Strategy<Value = WantSeed> {
    prop_oneof![
        Just(WantSeed::Meta),
        (0..KEYS.len()).prop_map(WantSeed::Value),
        (0..KEYS.len()).prop_map(WantSeed::Before),
        Just(WantSeed::Values),
    ]
}

fn any_use() -> impl Strategy<Value = UseSeed> {
    let proof = select(vec![Proof::None, Proof::Session, Proof::Token]);
    (-2_i64..=2, any::<bool>(), any::<bool>(), proof).prop_map(
        |(away, touches, sets_cookie, proves)| UseSeed { away, touches, sets_cookie, proves },
    )
}

pub(super) fn any_step() -> impl Strategy<Value = Step> {
    let slot = || 0..SLOTS;
    prop_oneof![
        12 => (slot(), any_record()).prop_map(|(slot, seed)| Step::Create(slot, seed)),
        4 => (slot(), any_want()).prop_map(|(slot, want)| Step::Load(slot, want)),
        16 => (slot(), any_patch(), any_want())
            .prop_map(|(slot, seed, want)| Step::Patch(slot, seed, want)),
        4 => (slot(), any_use()).prop_map(|(slot, seed)| Step::Use(slot, seed)),
        1 => slot().prop_map(Step::Remove),
        1 => (prop::option::of(any_principal()), 1_usize..4)
            .prop_map(|(principal, limit)| Step::List(principal, limit)),
        1 => Just(Step::Sweep),
        3 => (0_u64..1_500).prop_map(|millis| Step::Wait(Duration::from_millis(millis))),
        1 => (slot(), -1_i64..=1).prop_map(|(slot, after)| Step::WaitForEnd(slot, after)),
    ]
}

pub(super) fn any_policy() -> impl Strategy<Value = Policy> {
    let seconds = Duration::from_secs;
    (
        select(vec![seconds(10), seconds(60), Duration::MAX, Duration::from_millis(9_999)]),
        select(vec![None, Some(seconds(40)), Some(Duration::MAX)]),
        select(vec![None, Some(seconds(5)), Some(seconds(20)), Some(Duration::MAX)]),
        select(vec![seconds(0), seconds(5), seconds(30)]),
        select(vec![Duration::from_millis(500), seconds(60), Duration::MAX]),
        (3_usize..=6, 60_usize..1200),
    )
        .prop_map(
            move |(
                idle_timeout,
                absolute_timeout,
                unproven_timeout,
                rotation_grace,
                touch_interval,
                limits,
            )| {
                Policy {
                    idle_timeout,
                    absolute_timeout,
                    unproven_timeout,
                    rotation_grace,
                    touch_interval,
                    max_values: limits.0,
                    max_bytes: limits.1,
                    request_token_linger: seconds(3),
                    ..Policy::default()
                }
            },
        )
}
