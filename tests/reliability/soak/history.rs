//! Histories of writes: which values a read may return, given which writes were acknowledged when.
//!
//! A write is in flight, acknowledged or of unknown fate. A read is judged by when it was sent and
//! answered: a write that was acknowledged before the read was sent has to be visible, one that was
//! in flight meanwhile may be, and one of unknown fate may be until its fate is settled.

use std::time::{Duration, Instant};

use serde_json::Value;

/// A write whose answer never came may still reach Redis this long after the fault, or after the
/// write was given up: what waits in the buffers of a frozen server or a relay is carried out.
const SETTLES: Duration = Duration::from_secs(3);

/// A history is only shortened if nothing has happened to it for so long. More than
/// [`Window::BEFORE`], which reaches back from the moment of a failover.
const RESTS: Duration = Duration::from_secs(3);

/// A failover in which asynchronous replication may lose acknowledged writes.
#[derive(Clone, Debug)]
pub struct Window {
    pub began: Instant,
    /// `None` until it is over.
    pub ended: Option<Instant>,
    pub cause: &'static str,
    /// The third of the cluster's slots that is concerned; `None` means all sessions.
    pub shard: Option<usize>,
}

impl Window {
    /// How far replication may lag behind at the moment of a failover.
    pub const BEFORE: Duration = Duration::from_secs(1);

    fn covers(&self, shard: usize) -> bool {
        self.shard.is_none_or(|own| own == shard)
    }
}

/// The faults and failovers so far.
#[derive(Debug, Default)]
pub struct Past {
    /// When each fault began and ended.
    pub faults: Vec<(Instant, Option<Instant>)>,
    pub windows: Vec<Window>,
}

impl Past {
    /// Returns when a write that was given up at `ended` can no longer take effect; `None` if it
    /// still can.
    fn settled(&self, ended: Instant) -> Option<Instant> {
        let near = self.faults.iter().filter(|(began, over)| {
            *began <= ended + SETTLES && over.is_none_or(|over| over + SETTLES >= ended)
        });
        let mut last = ended;
        for (_, over) in near {
            last = last.max((*over)?);
        }
        Some(last + SETTLES)
    }

    /// Returns the failover that may have lost a write, if any.
    pub fn loss(
        &self,
        shard: usize,
        begun: Instant,
        acknowledged: Instant,
    ) -> Option<&'static str> {
        // The first that covers it says why.
        let lost = self.windows.iter().find(|window| {
            window.covers(shard)
                && acknowledged >= window.began
                && window.ended.is_none_or(|ended| begun <= ended)
        });
        lost.map(|window| window.cause)
    }

    /// The same for a write on any node, such as an index.
    pub fn loss_anywhere(&self, begun: Instant, acknowledged: Instant) -> bool {
        (0..3).any(|shard| self.loss(shard, begun, acknowledged).is_some())
    }

    fn is_calm(&self, shard: usize) -> bool {
        !self.windows.iter().any(|window| window.covers(shard) && window.ended.is_none())
    }

    /// Reports whether no fault has been there for `rest`.
    pub fn is_quiet(&self, now: Instant, rest: Duration) -> bool {
        self.faults.iter().all(|(_, ended)| ended.is_some_and(|ended| ended + rest <= now))
    }
}

/// When a read was made, and with what delay it may see what was acknowledged before.
#[derive(Clone, Copy)]
pub struct Read<'a> {
    pub sent: Instant,
    pub received: Instant,
    /// The documented bound of the cache if an instance with one took part, else zero.
    pub leeway: Duration,
    pub shard: usize,
    pub past: &'a Past,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    InFlight,
    Acknowledged(Instant),
    /// Given up at this time.
    Unknown(Instant),
}

#[derive(Clone, Debug)]
pub struct Write<V> {
    pub id: u64,
    pub begun: Instant,
    pub state: State,
    pub value: V,
    /// Its loss has been counted.
    pub reported: bool,
}

impl<V> Write<V> {
    pub fn new(id: u64, begun: Instant, state: State, value: V) -> Self {
        Self { id, begun, state, value, reported: false }
    }

    pub fn loss(&self, read: &Read<'_>) -> Option<&'static str> {
        match self.state {
            State::Acknowledged(at) => read.past.loss(read.shard, self.begun, at),
            State::InFlight | State::Unknown(_) => None,
        }
    }

    /// Whether a read has to see it unless a failover lost it.
    pub fn is_due(&self, read: &Read<'_>) -> bool {
        matches!(self.state, State::Acknowledged(at) if at + read.leeway <= read.sent)
    }

    /// Whether a read has to see it.
    pub fn is_certain(&self, read: &Read<'_>) -> bool {
        self.is_due(read) && self.loss(read).is_none()
    }

    /// Whether a read may see it.
    pub fn is_possible(&self, read: &Read<'_>) -> bool {
        self.begun <= read.received
    }

    /// When it has taken effect at the latest, if ever.
    pub fn settles(&self, past: &Past) -> Option<Instant> {
        match self.state {
            State::InFlight => None,
            State::Acknowledged(at) => Some(at),
            State::Unknown(ended) => past.settled(ended),
        }
    }

    fn precedes<W>(&self, later: &Write<W>, past: &Past) -> bool {
        self.id != later.id && self.settles(past).is_some_and(|settled| settled <= later.begun)
    }

    pub fn rests(&self, read: &Read<'_>) -> bool {
        self.settles(read.past).is_some_and(|settled| settled + RESTS <= read.sent)
            && read.past.is_calm(read.shard)
    }
}

/// What a read says about a history.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    /// As many acknowledged writes are missing, which this failover may have lost.
    Lost(u64, &'static str),
    Wrong(String),
}

/// A value that is replaced whole; `None` is its absence.
#[derive(Clone, Debug)]
pub struct Register {
    writes: Vec<Write<Option<Value>>>,
}

impl Register {
    /// A register that was empty before `since`.
    pub fn absent(since: Instant) -> Self {
        Self { writes: vec![Write::new(0, since, State::Acknowledged(since), None)] }
    }

    pub fn begin(&mut self, write: Write<Option<Value>>) {
        self.writes.push(write);
    }

    pub fn finish(&mut self, id: u64, state: Option<State>) {
        finish(&mut self.writes, id, state);
    }

    /// The values that are possible at some time.
    pub fn values(&self) -> impl Iterator<Item = &Write<Option<Value>>> {
        self.writes.iter()
    }

    pub fn judge(&mut self, value: Option<&Value>, read: &Read<'_>) -> Verdict {
        let past = read.past;
        let matching: Vec<usize> = (0..self.writes.len())
            .filter(|&index| {
                let write = &self.writes[index];
                write.value.as_ref() == value
                    && write.is_possible(read)
                    && !self.writes.iter().any(|x| x.is_certain(read) && write.precedes(x, past))
            })
            .collect();
        let Some(&last) = matching.last() else {
            return Verdict::Wrong(format!("read {value:?}, expected {}", self.expected(read)));
        };
        let found = self.writes[last].clone();
        let mut lost = Verdict::Right;
        for write in &mut self.writes {
            let missing = write.is_due(read) && found.precedes(write, past) && !write.reported;
            if let (true, Some(cause)) = (missing, write.loss(read)) {
                write.reported = true;
                let before = if let Verdict::Lost(count, _) = lost { count } else { 0 };
                lost = Verdict::Lost(before + 1, cause);
            }
        }
        if self.writes.iter().all(|write| write.rests(read)) {
            self.writes = vec![found];
        } else {
            let settled: Vec<_> = self
                .writes
                .iter()
                .filter(|x| x.rests(read) && x.is_certain(read))
                .cloned()
                .collect();
            self.writes.retain(|write| !settled.iter().any(|x| write.precedes(x, past)));
        }
        lost
    }

    fn expected(&self, read: &Read<'_>) -> String {
        let shown = self.writes.iter().rev().take(4).map(|write| {
            let age = read.sent.saturating_duration_since(write.begun);
            let state = match write.state {
                State::InFlight => "in flight".to_owned(),
                State::Acknowledged(at) => {
                    let before = read.sent.saturating_duration_since(at);
                    format!("acknowledged {} ms before", before.as_millis())
                }
                State::Unknown(_) => "of unknown fate".to_owned(),
            };
            format!("{:?} ({state}, begun {} ms before)", write.value, age.as_millis())
        });
        shown.collect::<Vec<_>>().join(", or before: ")
    }
}

/// A number that is only incremented by 1; absent counts as 0.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    base: i64,
    writes: Vec<Write<()>>,
}

impl Counter {
    pub fn begin(&mut self, write: Write<()>) {
        self.writes.push(write);
    }

    pub fn finish(&mut self, id: u64, state: Option<State>) {
        finish(&mut self.writes, id, state);
    }

    pub fn judge(&mut self, value: i64, read: &Read<'_>) -> Verdict {
        let count = |is: &dyn Fn(&Write<()>) -> bool| {
            self.base + i64::try_from(self.writes.iter().filter(|write| is(write)).count()).unwrap()
        };
        let least = count(&|write| write.is_certain(read));
        let due = count(&|write| write.is_due(read));
        let most = count(&|write| write.is_possible(read));
        if value < least || value > most {
            return Verdict::Wrong(format!("read {value}, expected {least} to {most}"));
        }
        if !self.writes.iter().all(|write| write.rests(read)) {
            return Verdict::Right;
        }
        let cause = self.writes.iter().find_map(|write| write.loss(read));
        self.base = value;
        self.writes.clear();
        match (u64::try_from(due - value), cause) {
            (Ok(lost @ 1..), Some(cause)) => Verdict::Lost(lost, cause),
            _ => Verdict::Right,
        }
    }
}

/// Gives a write its fate; one that was refused (`None`) never was.
fn finish<V>(writes: &mut Vec<Write<V>>, id: u64, state: Option<State>) {
    match state {
        Some(state) => {
            writes.iter_mut().filter(|write| write.id == id).for_each(|write| write.state = state);
        }
        None => writes.retain(|write| write.id != id),
    }
}
