//! The slots of a cluster, and their owners.

use std::ops::RangeInclusive;

use redis::{Value, from_redis_value};

use super::config::Address;

pub(crate) const SLOTS: u16 = 16384;

/// Returns the slot of a key: CRC-16 (XMODEM) of its hash tag, or of the whole key without one (Redis cluster
/// specification, "Key distribution model").
pub(crate) fn slot_of(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty());
    crc16(tag.unwrap_or(key).as_bytes()) % SLOTS
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 { shifted } else { shifted ^ 0x1021 }
        })
    })
}

/// The owners of the slots.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotMap {
    /// Sorted by their first slot.
    ranges: Vec<Range>,
}

#[derive(Clone, Debug)]
struct Range {
    first: u16,
    last: u16,
    owner: Address,
    /// Whether it has a replica.
    replicated: bool,
}

impl SlotMap {
    /// Reads the reply to `CLUSTER SLOTS` of the node `asked`, which may omit its own name. `None` without any
    /// primary. A range without a reachable primary is omitted.
    pub(crate) fn parse(answer: Value, asked: &Address) -> Option<Self> {
        let Value::Array(rows) = answer else { return None };
        let ranges = rows.into_iter().filter_map(|row| range(row, asked));
        let mut ranges: Vec<Range> = ranges.collect();
        ranges.sort_by_key(|range| range.first);
        (!ranges.is_empty()).then_some(Self { ranges })
    }

    /// Returns the owner of a slot.
    pub(crate) fn owner(&self, slot: u16) -> Option<&Address> {
        let after = self.ranges.partition_point(|range| range.first <= slot);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        (slot <= range.last).then_some(&range.owner)
    }

    /// Lists the ranges: slots, owner, and whether the map has a replica.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (RangeInclusive<u16>, &Address, bool)> {
        self.ranges
            .iter()
            .map(|range| (range.first..=range.last.min(SLOTS - 1), &range.owner, range.replicated))
    }

    /// Lists the owners, each once, in order.
    pub(crate) fn owners(&self) -> Vec<Address> {
        let mut owners: Vec<Address> =
            self.ranges.iter().map(|range| range.owner.clone()).collect();
        owners.sort();
        owners.dedup();
        owners
    }
}

/// Reads a row: first slot, last slot, the primary, its replicas.
fn range(row: Value, asked: &Address) -> Option<Range> {
    let Value::Array(parts) = row else { return None };
    let mut parts = parts.into_iter();
    let first = from_redis_value(parts.next()?).ok()?;
    let last = from_redis_value(parts.next()?).ok()?;
    let Value::Array(primary) = parts.next()? else { return None };
    let mut primary = primary.into_iter();
    let host: Option<String> = from_redis_value(primary.next()?).ok()?;
    // A node that cannot be reached this way has port 0.
    let port: u16 = from_redis_value(primary.next()?).ok().filter(|port| *port != 0)?;
    let owner = located(host.as_deref(), port, asked)?;
    Some(Range { first, last, owner, replicated: parts.next().is_some() })
}

/// Completes an address: a node that does not know its own host is reached at the host that was asked.
fn located(host: Option<&str>, port: u16, asked: &Address) -> Option<Address> {
    match (host, asked) {
        (Some(host), _) if !host.is_empty() && host != "?" => {
            Some(Address::Tcp { host: host.to_owned(), port })
        }
        (_, Address::Tcp { host, .. }) => Some(Address::Tcp { host: host.clone(), port }),
        (_, Address::Unix(_)) => None,
    }
}

/// Reads the target of a redirection: `host:port` after `MOVED` or `ASK`.
pub(crate) fn redirected(to: &str, asked: &Address) -> Option<Address> {
    let (host, port) = to.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    located(Some(host), port.parse().ok()?, asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot_of("123456789"), 0x31c3);
        assert_eq!(slot_of("foo"), 12182);
        assert_eq!(slot_of("x:{foo}:y"), 12182);
        assert_eq!(slot_of("{}foo"), crc16(b"{}foo") % SLOTS);
        assert_eq!(slot_of("{{foo}}"), crc16(b"{foo") % SLOTS);
    }

    #[test]
    fn maps_have_owners_and_holes() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let row = |first, last, host: &str, port| {
            let node = Value::Array(vec![bulk(host), Value::Int(port), bulk("id")]);
            Value::Array(vec![Value::Int(first), Value::Int(last), node])
        };
        let asked = Address::Tcp { host: "asked".into(), port: 1 };
        let Value::Array(mut replicated) = row(202, 203, "d", 3) else { panic!("a row") };
        replicated.push(replicated[2].clone());
        let no_port = row(300, 400, "c", 0);
        let no_primary = Value::Array(vec![Value::Int(500), Value::Int(600)]);
        let rows = vec![row(100, 200, "b", 2), row(0, 50, "", 1), no_port, no_primary.clone()];
        let rows = [rows, vec![Value::Array(replicated)]].concat();
        let map = SlotMap::parse(Value::Array(rows), &asked).unwrap();
        let owner = |slot| map.owner(slot).map(ToString::to_string);
        assert_eq!(owner(0).as_deref(), Some("asked:1"));
        assert_eq!(owner(50).as_deref(), Some("asked:1"));
        assert_eq!(owner(51), None);
        assert_eq!(owner(150).as_deref(), Some("b:2"));
        assert_eq!(owner(201), None);
        let replicated = map.ranges().filter(|(_, _, replicated)| *replicated);
        assert_eq!(replicated.map(|(slots, ..)| slots).collect::<Vec<_>>(), [202..=203]);
        assert_eq!((owner(300), owner(500)), (None, None));
        assert!(SlotMap::parse(Value::Array(vec![no_primary]), &asked).is_none());
        assert!(SlotMap::parse(Value::Array(Vec::new()), &asked).is_none());
        assert_eq!(redirected("::1:7000", &asked).unwrap().to_string(), "[::1]:7000");
        assert_eq!(redirected(":7000", &asked).unwrap().to_string(), "asked:7000");
    }
}
