//! Who was wrong lately. A name that somebody guesses passwords for is not looked at for a while, for this address alone:
//! nobody can lock others out. An address that tries many names is slowed down as a whole.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// So many times somebody may be wrong about one name in a row; each further time doubles the wait.
const FREE: u32 = 5;
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Failures of an address as a whole: so many at once, then one a second.
const ADDRESS_BURST: u32 = 60;
const ADDRESS_EACH: Duration = Duration::from_secs(1);

/// How long a failure counts.
const KEPT: Duration = Duration::from_secs(600);

/// How many addresses and names are remembered.
const MAX: usize = 4096;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Who {
    address: IpAddr,
    name: Option<String>,
}

impl Who {
    fn new(address: IpAddr, name: Option<&str>) -> Who {
        let address = match address {
            // Whoever has one address of IPv6 has all of its subnet.
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_none() => {
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)))
            }
            other => other.to_canonical(),
        };
        // A name that cannot be a user's need not be told from others.
        Who { address, name: name.map(|name| name.chars().take(64).collect()) }
    }
}

#[derive(Clone, Copy)]
struct Count {
    times: u32,
    last: Instant,
}

#[derive(Default)]
pub(super) struct Failures {
    counts: HashMap<Who, Count>,
}

impl Failures {
    /// How many seconds nothing is looked at; `None`: go on.
    pub(super) fn wait(&self, from: IpAddr, name: Option<&str>, now: Instant) -> Option<u64> {
        let whole = self.counts.get(&Who::new(from, None)).and_then(|count| {
            let drained = drained(*count, now);
            (drained >= ADDRESS_BURST).then_some(ADDRESS_EACH)
        });
        let named = name.and_then(|name| self.counts.get(&Who::new(from, Some(name)))).and_then(|count| {
            let further = count.times.checked_sub(FREE)?;
            let wait = Duration::from_secs(1 << further.min(10)).min(WAIT_MAX);
            wait.checked_sub(now.saturating_duration_since(count.last))
        });
        let wait = whole.max(named).filter(|wait| !wait.is_zero())?;
        Some(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
    }

    pub(super) fn note(&mut self, from: IpAddr, name: Option<&str>, now: Instant) {
        self.make_room(now);
        let whole = self.counts.entry(Who::new(from, None)).or_insert(Count { times: 0, last: now });
        *whole = Count { times: drained(*whole, now) + 1, last: now };
        if name.is_some() {
            let named = self.counts.entry(Who::new(from, name)).or_insert(Count { times: 0, last: now });
            let before = if now.saturating_duration_since(named.last) < KEPT { named.times } else { 0 };
            *named = Count { times: before.saturating_add(1), last: now };
        }
    }

    /// It was right at last.
    pub(super) fn forget(&mut self, from: IpAddr, name: &str) {
        self.counts.remove(&Who::new(from, Some(name)));
    }

    fn make_room(&mut self, now: Instant) {
        if self.counts.len() < MAX {
            return;
        }
        self.counts.retain(|_, count| now.saturating_duration_since(count.last) < KEPT);
        while self.counts.len() >= MAX {
            let oldest = self.counts.iter().min_by_key(|(_, count)| count.last).map(|(who, _)| who.clone());
            let Some(oldest) = oldest else { return };
            self.counts.remove(&oldest);
        }
    }
}

/// What is left of an address's failures: each second takes one away.
fn drained(count: Count, now: Instant) -> u32 {
    let gone = now.saturating_duration_since(count.last).as_secs() / ADDRESS_EACH.as_secs();
    count.times.saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn after(seconds: u64, start: Instant) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn whoever_guesses_waits_longer_each_time_and_others_do_not() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for _ in 0..FREE {
            assert_eq!(failures.wait(HERE, Some("bob"), now), None);
            failures.note(HERE, Some("bob"), now);
        }
        assert_eq!(failures.wait(HERE, Some("bob"), now), Some(1));
        assert_eq!(failures.wait(HERE, Some("eve"), now), None);
        assert_eq!(failures.wait(HERE, None, now), None);
        assert_eq!(
            failures.wait("10.0.0.1".parse().unwrap(), Some("bob"), now),
            None,
            "nobody is locked out"
        );
        assert_eq!(failures.wait(HERE, Some("bob"), after(1, now)), None);
        let mut at = after(1, now);
        for wait in [2, 4, 8, 16, 30, 30] {
            failures.note(HERE, Some("bob"), at);
            assert_eq!(failures.wait(HERE, Some("bob"), at), Some(wait));
            at = after(wait, at);
            assert_eq!(failures.wait(HERE, Some("bob"), at), None);
        }
        failures.forget(HERE, "bob");
        failures.note(HERE, Some("bob"), at);
        assert_eq!(failures.wait(HERE, Some("bob"), at), None, "it was right in between");
    }

    #[test]
    fn an_address_that_tries_many_names_is_slowed_down() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for i in 0..ADDRESS_BURST {
            assert_eq!(failures.wait(HERE, Some("new"), now), None);
            failures.note(HERE, Some(&i.to_string()), now);
        }
        assert_eq!(failures.wait(HERE, Some("new"), now), Some(1));
        assert_eq!(failures.wait(HERE, None, now), Some(1));
        let mapped = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!(failures.wait(mapped, Some("new"), now), Some(1), "the same address in other clothes");
        assert_eq!(failures.wait(HERE, Some("new"), after(1, now)), None);
        failures.note(HERE, Some("new"), after(1, now));
        assert_eq!(failures.wait(HERE, Some("newer"), after(1, now)), Some(1));
    }

    #[test]
    fn a_subnet_of_ipv6_is_one_address_and_memory_is_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for i in 0..u128::from(ADDRESS_BURST) {
            let address = Ipv6Addr::from_bits((0x2001_0db8 << 96) | i);
            failures.note(address.into(), Some(&i.to_string()), now);
        }
        assert_eq!(failures.wait("2001:db8::ffff".parse().unwrap(), Some("x"), now), Some(1));
        assert_eq!(failures.wait("2001:db8:1::ffff".parse().unwrap(), Some("x"), now), None);
        for i in 0..2 * MAX as u32 {
            failures.note(std::net::Ipv4Addr::from_bits(i).into(), Some("x"), now);
        }
        assert!(failures.counts.len() <= MAX + 1);
    }
}
