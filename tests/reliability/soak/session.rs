//! What the oracle knows of one session.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Map, Value};

use super::history::{Counter, Past, Read, Register, State, Verdict, Write};
use super::order::Change;

/// A session of the model.
#[derive(Debug)]
pub struct Session {
    pub visitor: usize,
    pub shard: usize,
    pub creation: Write<()>,
    registers: BTreeMap<String, Register>,
    counters: BTreeMap<String, Counter>,
    pub principal: Register,
    /// Whether a replica is known to have it, so that no failover brings the session back.
    pub destroys: Vec<Write<Durable>>,
    pub rotations: Vec<Write<Rotation>>,
    /// A wrong answer about it was reported, and it is no longer judged.
    pub reported: bool,
    /// It was found missing or revived after a failover that allows this.
    pub lost: bool,
}

pub type Durable = bool;

/// A rotation that the site asked for, by itself or by a log-in.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// The generation of the token that came with the request: dead afterwards.
    pub presented: u32,
    /// The generation of the token that came back: the first that is valid afterwards.
    pub granted: Option<u32>,
}

/// What has to be so when a session is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Yes,
    No,
    Either,
}

impl Session {
    pub fn new(visitor: usize, shard: usize, creation: Write<()>) -> Self {
        let principal = Register::absent(creation.begun);
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

    /// Notes that `change` is on its way, or done.
    pub fn begin(
        &mut self,
        id: u64,
        begun: Instant,
        state: State,
        presented: u32,
        change: &Change,
    ) {
        let since = self.creation.begun;
        for (key, value) in &change.sets {
            let register =
                self.registers.entry(key.clone()).or_insert_with(|| Register::absent(since));
            register.begin(Write::new(id, begun, state, value.clone()));
        }
        for key in &change.increments {
            let counter = self.counters.entry(key.clone()).or_default();
            counter.begin(Write::new(id, begun, state, ()));
        }
        if let Some(principal) = &change.login {
            let name = Some(Value::from(principal.clone()));
            self.principal.begin(Write::new(id, begun, state, name));
        }
        if change.rotates() {
            let rotation = Rotation { presented, granted: None };
            self.rotations.push(Write::new(id, begun, state, rotation));
        }
        if change.destroy {
            self.destroys.push(Write::new(id, begun, state, false));
        }
    }

    /// Notes what became of a change; `None` means that it was refused.
    pub fn finish(&mut self, id: u64, state: Option<State>, durable: Durable) {
        self.registers.values_mut().for_each(|register| register.finish(id, state));
        self.counters.values_mut().for_each(|counter| counter.finish(id, state));
        self.principal.finish(id, state);
        match state {
            Some(state) => {
                for destroy in self.destroys.iter_mut().filter(|destroy| destroy.id == id) {
                    destroy.state = state;
                    destroy.value = durable;
                }
                let rotations = self.rotations.iter_mut();
                rotations
                    .filter(|rotation| rotation.id == id)
                    .for_each(|rotation| rotation.state = state);
            }
            None => {
                self.destroys.retain(|destroy| destroy.id != id);
                self.rotations.retain(|rotation| rotation.id != id);
            }
        }
    }

    /// Whether it has to be there.
    pub fn lives(&self, read: &Read<'_>) -> Expected {
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

    /// Whether it was certainly made before. No cache knows that a session is not there.
    fn is_created(&self, read: &Read<'_>) -> bool {
        matches!(self.creation.state, State::Acknowledged(at) if at <= read.sent)
            && self.creation.loss(read).is_none()
    }

    /// Whether a token of this generation has to open it, if it is there.
    pub fn opens(&self, generation: u32, read: &Read<'_>) -> Expected {
        let mut expected = Expected::Yes;
        for rotation in &self.rotations {
            let Rotation { presented, granted } = rotation.value;
            let over = granted.map_or(generation <= presented, |granted| generation < granted);
            if over && rotation.is_certain(read) {
                return Expected::No;
            }
            // Only the proxy can have made the token that came back: not even a cache is an excuse.
            let is_latest = granted.is_some_and(|granted| generation >= granted);
            if !(is_latest && rotation.loss(read).is_none()) && rotation.is_possible(read) {
                expected = Expected::Either;
            }
        }
        expected
    }

    /// Notes the token that came back from a rotation: those before it no longer matter.
    pub fn granted(&mut self, id: u64, generation: u32) {
        for rotation in self.rotations.iter_mut().filter(|rotation| rotation.id == id) {
            rotation.value.granted = Some(generation);
        }
        self.rotations.retain(|rotation| {
            rotation.id >= id || !matches!(rotation.state, State::Acknowledged(_))
        });
    }

    /// Judges all values. Returns what is wrong, and what failovers have lost.
    pub fn judge(
        &mut self,
        values: &Map<String, Value>,
        read: &Read<'_>,
    ) -> Result<Vec<(u64, &'static str)>, String> {
        if let Some(owner) =
            values.get("owner").filter(|owner| **owner != Value::from(self.visitor))
        {
            return Err(format!("the data of another visitor: {owner}"));
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

    /// Judges one number.
    pub fn judge_counter(&mut self, key: &str, number: i64, read: &Read<'_>) -> Verdict {
        self.counters.entry(key.to_owned()).or_default().judge(number, read)
    }

    /// How many values it knows.
    pub fn size(&self) -> usize {
        self.registers.len() + self.counters.len()
    }

    /// Whether it belongs to `principal`.
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

    /// Whether the index of `principal`, which may be on another node, certainly names it.
    pub fn is_indexed(&self, principal: &Value, past: &Past) -> bool {
        self.principal.values().any(|write| match write.state {
            State::Acknowledged(at) => {
                write.value.as_ref() == Some(principal) && !past.loss_anywhere(write.begun, at)
            }
            State::InFlight | State::Unknown(_) => false,
        })
    }

    /// Settles what was open once it was found alive. Returns the cause if it is back after a
    /// log-out that a failover has lost.
    pub fn found_alive(&mut self, read: &Read<'_>) -> Option<&'static str> {
        let mut revived = None;
        self.destroys.retain(|destroy| match destroy.state {
            State::Unknown(_) => !destroy.rests(read),
            State::Acknowledged(_) if destroy.is_due(read) => {
                revived = destroy.loss(read).or(revived);
                destroy.loss(read).is_none()
            }
            State::Acknowledged(_) | State::InFlight => true,
        });
        self.lost |= revived.is_some();
        let unknown = matches!(self.creation.state, State::Unknown(_));
        if unknown || (self.creation.rests(read) && self.creation.loss(read).is_some()) {
            settle(&mut self.creation, read);
        }
        revived
    }

    /// Settles which rotations were done once a token of this generation opened it. Returns the
    /// cause if one was lost by a failover.
    pub fn opened_by(&mut self, generation: u32, read: &Read<'_>) -> Option<&'static str> {
        let mut undone = None;
        self.rotations.retain_mut(|rotation| {
            if !rotation.rests(read) {
                return true;
            }
            match rotation.value.granted {
                Some(granted) if granted <= generation => {
                    settle(rotation, read);
                    true
                }
                // It was not done, or a failover has undone it.
                _ => {
                    undone = rotation.loss(read).or(undone);
                    false
                }
            }
        });
        self.lost |= undone.is_some();
        undone
    }

    /// Settles what was open once it was found gone. Returns the cause if a failover has lost it.
    pub fn found_gone(&mut self, read: &Read<'_>) -> Option<&'static str> {
        if self.lost || self.lives(read) != Expected::Either {
            return None;
        }
        let creation = &self.creation;
        let mut destroys = self.destroys.iter_mut().rev();
        match destroys.find(|destroy| destroy.is_possible(read)) {
            Some(destroy) => {
                match destroy.state {
                    State::Unknown(_) => destroy.state = State::Acknowledged(read.received),
                    State::Acknowledged(_) => destroy.value |= destroy.rests(read),
                    State::InFlight => {}
                }
                None
            }
            None => {
                let cause = creation.loss(read).filter(|_| creation.rests(read));
                self.lost |= cause.is_some();
                cause
            }
        }
    }
}

/// Notes that a write is known to be there now, whatever failed over before.
fn settle<V>(write: &mut Write<V>, read: &Read<'_>) {
    write.begun = read.received;
    write.state = State::Acknowledged(read.received);
}
