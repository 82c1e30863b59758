//! Histories of writes: the values that a read may return, given when writes were acknowledged.
//!
//! A write is in flight, acknowledged or of unknown fate. A read is judged by the times of its
//! request and its response: a write that was acknowledged before the read was sent must be
//! visible, one that was in flight at the same time may be, and one of unknown fate may be until
//! its fate is settled.

use std::time::{Duration, Instant};

use serde_json::Value;

/// Time after the fault, or after the write was given up, for which a write without a response may
/// still reach Redis: data in the buffers of a frozen server or a relay is processed later.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// Time without changes after which a history is shortened. Longer than [`Window::BEFORE`], which
/// reaches back from the moment of a failover.
const QUIET_TIME: Duration = Duration::from_secs(3);

/// A failover in which asynchronous replication may lose acknowledged writes.
#[derive(Clone, Debug)]
pub struct Window {
    pub began: Instant,
    /// `None` until it has ended.
    pub ended: Option<Instant>,
    pub cause: &'static str,
    /// The third of the cluster's slots that is affected; `None` means all sessions.
    pub shard: Option<usize>,
}

impl Window {
    /// Limit of the replication lag at the moment of a failover.
    pub const BEFORE: Duration = Duration::from_secs(1);

    fn affects(&self, shard: usize) -> bool {
        self.shard.is_none_or(|own| own == shard)
    }
}

/// The faults and failovers so far.
#[derive(Debug, Default)]
pub struct Past {
    /// Begin and end of each fault.
    pub faults: Vec<(Instant, Option<Instant>)>,
    pub windows: Vec<Window>,
}

impl Past {
    /// Returns when a write that was given up at `ended` can no longer take effect; `None` if it
    /// still can.
    fn settled(&self, ended: Instant) -> Option<Instant> {
        let near = self.faults.iter().filter(|(began, over)| {
            *began <= ended + SETTLE_TIME && over.is_none_or(|over| over + SETTLE_TIME >= ended)
        });
        let mut last = ended;
        for (_, over) in near {
            last = last.max((*over)?);
        }
        Some(last + SETTLE_TIME)
    }

    /// Returns the failover that may have lost a write, if any.
    pub fn loss(
        &self,
        shard: usize,
        started: Instant,
        acknowledged: Instant,
    ) -> Option<&'static str> {
        // The first failover that affects the write is the cause.
        let lost = self.windows.iter().find(|window| {
            window.affects(shard)
                && acknowledged >= window.began
                && window.ended.is_none_or(|ended| started <= ended)
        });
        lost.map(|window| window.cause)
    }

    /// Returns true if a failover of any node may have lost a write, for writes such as those of an
    /// index.
    pub fn loss_anywhere(&self, started: Instant, acknowledged: Instant) -> bool {
        (0..3).any(|shard| self.loss(shard, started, acknowledged).is_some())
    }

    fn is_calm(&self, shard: usize) -> bool {
        !self.windows.iter().any(|window| window.affects(shard) && window.ended.is_none())
    }

    /// Returns true if there has been no fault for `rest`.
    pub fn is_quiet(&self, now: Instant, rest: Duration) -> bool {
        self.faults.iter().all(|(_, ended)| ended.is_some_and(|ended| ended + rest <= now))
    }
}

/// Times of a read, and the staleness that it may have.
#[derive(Clone, Copy)]
pub struct Read<'a> {
    pub sent: Instant,
    pub received: Instant,
    /// The documented bound of the cache if an instance with a cache took part, else zero.
    pub staleness: Duration,
    pub shard: usize,
    pub past: &'a Past,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    InFlight,
    Acknowledged(Instant),
    /// Given up at this time without a response.
    Unknown(Instant),
}

#[derive(Clone, Debug)]
pub struct Write<V> {
    pub id: u64,
    pub started: Instant,
    pub state: State,
    pub value: V,
    /// True once its loss has been counted.
    pub reported: bool,
}

impl<V> Write<V> {
    pub fn new(id: u64, started: Instant, state: State, value: V) -> Self {
        Self { id, started, state, value, reported: false }
    }

    pub fn loss(&self, read: &Read<'_>) -> Option<&'static str> {
        match self.state {
            State::Acknowledged(at) => read.past.loss(read.shard, self.started, at),
            State::InFlight | State::Unknown(_) => None,
        }
    }

    /// Returns true if a read must see it, unless a failover lost it.
    pub fn is_due(&self, read: &Read<'_>) -> bool {
        matches!(self.state, State::Acknowledged(at) if at + read.staleness <= read.sent)
    }

    /// Returns true if a read must see it.
    pub fn is_certain(&self, read: &Read<'_>) -> bool {
        self.is_due(read) && self.loss(read).is_none()
    }

    /// Returns true if a read may see it.
    pub fn is_possible(&self, read: &Read<'_>) -> bool {
        self.started <= read.received
    }

    /// Returns the latest time at which it takes effect, if it ever does; `None` if that is not
    /// known yet.
    pub fn settled_at(&self, past: &Past) -> Option<Instant> {
        match self.state {
            State::InFlight => None,
            State::Acknowledged(at) => Some(at),
            State::Unknown(ended) => past.settled(ended),
        }
    }

    fn precedes<W>(&self, later: &Write<W>, past: &Past) -> bool {
        self.id != later.id && self.settled_at(past).is_some_and(|settled| settled <= later.started)
    }

    /// Returns true if neither its fate nor its visibility can change any more.
    pub fn is_settled(&self, read: &Read<'_>) -> bool {
        self.settled_at(read.past).is_some_and(|settled| settled + QUIET_TIME <= read.sent)
            && read.past.is_calm(read.shard)
    }
}

/// The result of comparing a read with a history.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    /// This number of acknowledged writes is missing, and this failover may have lost them.
    Lost(u64, &'static str),
    Wrong(String),
}

/// A value that each write replaces; `None` means that it is absent.
#[derive(Clone, Debug)]
pub struct Register {
    writes: Vec<Write<Option<Value>>>,
}

impl Register {
    /// Creates a register that was empty until `since`.
    pub fn absent(since: Instant) -> Self {
        Self { writes: vec![Write::new(0, since, State::Acknowledged(since), None)] }
    }

    pub fn begin(&mut self, write: Write<Option<Value>>) {
        self.writes.push(write);
    }

    pub fn finish(&mut self, id: u64, state: Option<State>) {
        finish(&mut self.writes, id, state);
    }

    /// Returns the writes that a read may see at some time.
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
        if self.writes.iter().all(|write| write.is_settled(read)) {
            self.writes = vec![found];
        } else {
            let settled: Vec<_> = self
                .writes
                .iter()
                .filter(|x| x.is_settled(read) && x.is_certain(read))
                .cloned()
                .collect();
            self.writes.retain(|write| !settled.iter().any(|x| write.precedes(x, past)));
        }
        lost
    }

    fn expected(&self, read: &Read<'_>) -> String {
        let shown = self.writes.iter().rev().take(4).map(|write| {
            let age = read.sent.saturating_duration_since(write.started);
            let state = match write.state {
                State::InFlight => "in flight".to_owned(),
                State::Acknowledged(at) => {
                    let before = read.sent.saturating_duration_since(at);
                    format!("acknowledged {} ms before", before.as_millis())
                }
                State::Unknown(_) => "of unknown fate".to_owned(),
            };
            format!("{:?} ({state}, started {} ms before)", write.value, age.as_millis())
        });
        shown.collect::<Vec<_>>().join(", or before: ")
    }
}

/// A number that is only ever incremented by 1; absent counts as 0.
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
        if !self.writes.iter().all(|write| write.is_settled(read)) {
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

/// Sets the state of a write; a rejected one (`None`) is removed.
fn finish<V>(writes: &mut Vec<Write<V>>, id: u64, state: Option<State>) {
    match state {
        Some(state) => {
            writes.iter_mut().filter(|write| write.id == id).for_each(|write| write.state = state);
        }
        None => writes.retain(|write| write.id != id),
    }
}
