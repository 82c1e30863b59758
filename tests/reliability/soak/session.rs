//! The model of one session.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Map, Value};

use super::history::{Counter, Past, Read, Register, State, Verdict, Write};
use super::job::Change;

/// A session of the model.
#[derive(Debug)]
pub struct Session {
    pub visitor: usize,
    pub shard: usize,
    pub creation: Write<()>,
    registers: BTreeMap<String, Register>,
    counters: BTreeMap<String, Counter>,
    pub principal: Register,
    /// Destroys; the value is true if a replica is known to have it, so that no failover undoes it.
    pub destroys: Vec<Write<Durable>>,
    pub rotations: Vec<Write<Rotation>>,
    /// True once a violation was reported; the session is no longer judged.
    pub reported: bool,
    /// True if it was missing or restored after a failover that allows this.
    pub lost: bool,
}

pub type Durable = bool;

/// A rotation that the site requested, explicitly or by a log-in.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// The generation of the request's token, which the rotation invalidates.
    pub presented: u32,
    /// The generation of the token in the response: the first valid one afterwards.
    pub granted: Option<u32>,
}

/// The expected result of a check; `Either` if changes of unknown fate permit both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Yes,
    No,
    Either,
}

impl Session {
    pub fn new(visitor: usize, shard: usize, creation: Write<()>) -> Self {
        let principal = Register::absent(creation.started);
        Self {
            visitor,
            shard,
            creation,
            registers: BTreeMap::new(),
            counters: BTreeMap::new(),
            principal,
            destroys: Vec::new(),
            rotations: Vec::new(),
            reported: false,
            lost: false,
        }
    }

    /// Records a change that is in flight or done.
    pub fn begin(
        &mut self,
        id: u64,
        started: Instant,
        state: State,
        presented: u32,
        change: &Change,
    ) {
        let since = self.creation.started;
        for (key, value) in &change.sets {
            let register =
                self.registers.entry(key.clone()).or_insert_with(|| Register::absent(since));
            register.begin(Write::new(id, started, state, value.clone()));
        }
        for key in &change.increments {
            let counter = self.counters.entry(key.clone()).or_default();
            counter.begin(Write::new(id, started, state, ()));
        }
        if let Some(principal) = &change.login {
            let name = Some(Value::from(principal.clone()));
            self.principal.begin(Write::new(id, started, state, name));
        }
        if change.rotates() {
            let rotation = Rotation { presented, granted: None };
            self.rotations.push(Write::new(id, started, state, rotation));
        }
        if change.destroy {
            self.destroys.push(Write::new(id, started, state, false));
        }
    }

    /// Records the outcome of a change; `None` means that it was rejected.
    pub fn finish(&mut self, id: u64, state: Option<State>, durable: Durable) {
        self.registers.values_mut().for_each(|register| register.finish(id, state));
        self.counters.values_mut().for_each(|counter| counter.finish(id, state));
        self.principal.finish(id, state);
        if let Some(state) = state {
            for destroy in self.destroys.iter_mut().filter(|destroy| destroy.id == id) {
                destroy.state = state;
                destroy.value = durable;
            }
            let rotations = self.rotations.iter_mut();
            rotations
                .filter(|rotation| rotation.id == id)
                .for_each(|rotation| rotation.state = state);
        } else {
            self.destroys.retain(|destroy| destroy.id != id);
            self.rotations.retain(|rotation| rotation.id != id);
        }
    }

    /// Returns whether it must exist.
    pub fn is_alive(&self, read: &Read<'_>) -> Expected {
        let certain = |destroy: &Write<Durable>| {
            destroy.is_certain(read) || (destroy.value && destroy.is_due(read))
        };
        if self.destroys.iter().any(certain) {
            Expected::No
        } else if self.lost
            || self.destroys.iter().any(|destroy| destroy.is_possible(read))
            || !self.is_created(read)
        {
            Expected::Either
        } else {
            Expected::Yes
        }
    }

    /// Returns true if it certainly existed before the read. Caches do not store the absence of a
    /// session, so there is no staleness.
    fn is_created(&self, read: &Read<'_>) -> bool {
        matches!(self.creation.state, State::Acknowledged(at) if at <= read.sent)
            && self.creation.loss(read).is_none()
    }

    /// Returns whether a token of this generation must open it, if it exists.
    pub fn opens(&self, generation: u32, read: &Read<'_>) -> Expected {
        let mut expected = Expected::Yes;
        for rotation in &self.rotations {
            let Rotation { presented, granted } = rotation.value;
            let invalidated =
                granted.map_or(generation <= presented, |granted| generation < granted);
            if invalidated && rotation.is_certain(read) {
                return Expected::No;
            }
            // Only the proxy can have issued the token in the response, so it is valid even with a
            // stale cache.
            let is_latest = granted.is_some_and(|granted| generation >= granted);
            if !(is_latest && rotation.loss(read).is_none()) && rotation.is_possible(read) {
                expected = Expected::Either;
            }
        }
        expected
    }

    /// Records the token of a rotation's response; earlier rotations no longer matter.
    pub fn granted(&mut self, id: u64, generation: u32) {
        for rotation in self.rotations.iter_mut().filter(|rotation| rotation.id == id) {
            rotation.value.granted = Some(generation);
        }
        self.rotations.retain(|rotation| {
            rotation.id >= id || !matches!(rotation.state, State::Acknowledged(_))
        });
    }

    /// Judges all values. Returns the losses by failovers, or the violation as an error.
    pub fn judge(
        &mut self,
        values: &Map<String, Value>,
        read: &Read<'_>,
    ) -> Result<Vec<(u64, &'static str)>, String> {
        let owner = values.get("owner").filter(|owner| owner.as_u64() != Some(self.visitor as u64));
        if let Some(owner) = owner {
            return Err(format!("data of another visitor: {owner}"));
        }
        if values.get("left") != values.get("right") {
            return Err(format!(
                "half of a change: {:?} {:?}",
                values.get("left"),
                values.get("right")
            ));
        }
        let known =
            |key: &&String| self.registers.contains_key(*key) || self.counters.contains_key(*key);
        if let Some(key) = values.keys().find(|key| !known(key)) {
            return Err(format!("a value that was never written: {key}"));
        }
        let mut lost = Vec::new();
        let mut note = |key: &str, verdict| match verdict {
            Verdict::Right => Ok(()),
            Verdict::Lost(count, cause) => {
                lost.push((count, cause));
                Ok(())
            }
            Verdict::Wrong(text) => Err(format!("value {key}: {text}")),
        };
        for (key, register) in &mut self.registers {
            note(key, register.judge(values.get(key), read))?;
        }
        for (key, counter) in &mut self.counters {
            let number = values.get(key).map_or(Some(0), Value::as_i64);
            let number = number.ok_or_else(|| format!("value {key}: not a number"))?;
            note(key, counter.judge(number, read))?;
        }
        Ok(lost)
    }

    /// Judges the value of one counter.
    pub fn judge_counter(&mut self, key: &str, number: i64, read: &Read<'_>) -> Verdict {
        self.counters.entry(key.to_owned()).or_default().judge(number, read)
    }

    /// Returns the number of its values.
    pub fn size(&self) -> usize {
        self.registers.len() + self.counters.len()
    }

    /// Returns whether it belongs to `principal`.
    pub fn belongs_to(&self, principal: &Value, read: &Read<'_>) -> Expected {
        let possible = || self.principal.values().filter(|write| write.is_possible(read));
        let is_named = |write: &&Write<Option<Value>>| write.value.as_ref() == Some(principal);
        let mut named = possible().filter(is_named).peekable();
        if named.peek().is_none() {
            Expected::No
        } else if named.any(|write| write.is_certain(read)) || possible().all(|w| is_named(&w)) {
            Expected::Yes
        } else {
            Expected::Either
        }
    }

    /// Returns true if the index of `principal`, which may be on another node, certainly has it.
    pub fn is_indexed(&self, principal: &Value, past: &Past) -> bool {
        self.principal.values().any(|write| match write.state {
            State::Acknowledged(at) => {
                write.value.as_ref() == Some(principal) && !past.loss_anywhere(write.started, at)
            }
            State::InFlight | State::Unknown(_) => false,
        })
    }

    /// Settles changes of unknown fate once it was found alive. Returns the cause if it exists
    /// because a failover lost its log-out.
    pub fn found_alive(&mut self, read: &Read<'_>) -> Option<&'static str> {
        let mut revived = None;
        self.destroys.retain(|destroy| match destroy.state {
            State::Unknown(_) => !destroy.is_settled(read),
            State::Acknowledged(_) if destroy.is_due(read) => {
                revived = destroy.loss(read).or(revived);
                destroy.loss(read).is_none()
            }
            State::Acknowledged(_) | State::InFlight => true,
        });
        self.lost |= revived.is_some();
        let unknown = matches!(self.creation.state, State::Unknown(_));
        if unknown || (self.creation.is_settled(read) && self.creation.loss(read).is_some()) {
            settle(&mut self.creation, read);
        }
        revived
    }

    /// Settles its rotations once a token of this generation opened it. Returns the cause if a
    /// failover lost one.
    pub fn opened_by(&mut self, generation: u32, read: &Read<'_>) -> Option<&'static str> {
        let mut undone = None;
        self.rotations.retain_mut(|rotation| {
            if !rotation.is_settled(read) {
                return true;
            }
            match rotation.value.granted {
                Some(granted) if granted <= generation => {
                    settle(rotation, read);
                    true
                }
                // It did not happen, or a failover has undone it.
                _ => {
                    undone = rotation.loss(read).or(undone);
                    false
                }
            }
        });
        self.lost |= undone.is_some();
        undone
    }

    /// Settles changes of unknown fate once it was found missing. Returns the cause if a failover
    /// lost it.
    pub fn found_missing(&mut self, read: &Read<'_>) -> Option<&'static str> {
        if self.lost || self.is_alive(read) != Expected::Either {
            return None;
        }
        let creation = &self.creation;
        let mut destroys = self.destroys.iter_mut().rev();
        if let Some(destroy) = destroys.find(|destroy| destroy.is_possible(read)) {
            match destroy.state {
                State::Unknown(_) => destroy.state = State::Acknowledged(read.received),
                State::Acknowledged(_) => destroy.value |= destroy.is_settled(read),
                State::InFlight => {}
            }
            None
        } else {
            let cause = creation.loss(read).filter(|_| creation.is_settled(read));
            self.lost |= cause.is_some();
            cause
        }
    }
}

/// Records that a write is certainly present now, whatever failed over before.
fn settle<V>(write: &mut Write<V>, read: &Read<'_>) {
    write.started = read.received;
    write.state = State::Acknowledged(read.received);
}
