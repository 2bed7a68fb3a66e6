//! Packets that are dropped, late or lost. Everything is healed at once by the network itself.

use super::Nemesis;
use pgquorum_tests::{CLIENT, Shape};
use std::time::Duration;

impl Nemesis {
    fn cut_groups(&self, one: &[u64], other: &[u64]) -> Result<(), String> {
        for a in one {
            for b in other {
                self.cluster.network.cut(*a, *b);
            }
        }
        Ok(())
    }

    pub(super) fn isolate(&self, place: u64, clients_reach_it: bool) -> Result<(), String> {
        if !clients_reach_it {
            self.cluster.network.cut(place, CLIENT);
        }
        self.cut_groups(&[place], &self.cluster.others(place))
    }

    pub(super) fn split(&self, with: u64) -> Result<(), String> {
        let others = self.cluster.others(self.leader());
        let (near, far) = others.split_at(with as usize);
        self.cut_groups(&[&[self.leader()], near].concat(), far)
    }

    pub(super) fn deaf(&self, place: u64) -> Result<(), String> {
        self.cluster.others(place).iter().for_each(|other| self.cluster.network.drop_packets(*other, place));
        Ok(())
    }

    pub(super) fn mute(&self, place: u64) -> Result<(), String> {
        self.cluster.others(place).iter().for_each(|other| self.cluster.network.drop_packets(place, *other));
        Ok(())
    }

    pub(super) fn one_way(&self, from: u64, to: u64) -> Result<(), String> {
        self.cluster.network.drop_packets(from, to);
        Ok(())
    }

    pub(super) fn link(&self, one: u64, other: u64) -> Result<(), String> {
        self.cut_groups(&[one], &[other])
    }

    pub(super) fn bridge(&self, place: u64) -> Result<(), String> {
        let others = self.cluster.others(place);
        let (one, other) = others.split_at(others.len() / 2);
        self.cut_groups(one, other)
    }

    pub(super) fn slow(&self, place: u64, loss: u32, delay: u64) -> Result<(), String> {
        let mut others = self.cluster.others(place);
        others.push(CLIENT);
        others.into_iter().try_for_each(|other| self.shape(place, other, loss, delay))
    }

    pub(super) fn slow_all(&self, loss: u32, delay: u64) -> Result<(), String> {
        let ids = self.cluster.ids();
        let pairs = ids.iter().flat_map(|a| ids.iter().filter(move |b| *b > a).map(move |b| (*a, *b)));
        pairs.into_iter().try_for_each(|(a, b)| self.shape(a, b, loss, delay))
    }

    fn shape(&self, one: u64, other: u64, loss: u32, delay: u64) -> Result<(), String> {
        let delay = Duration::from_millis(delay);
        let shape = Shape { loss, delay, jitter: delay / 2 };
        self.cluster.network.shape(one, other, shape)?;
        self.cluster.network.shape(other, one, shape)
    }
}
