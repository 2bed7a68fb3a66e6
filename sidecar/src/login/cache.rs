//! Passwords that were verified lately. What is kept is a keyed hash over name, password and the hash that it fitted, so
//! nothing here helps anybody, and a user whose password changes, or who is gone, is not found any more.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a password counts as verified.
const KEPT: Duration = Duration::from_secs(60);

/// How many are remembered.
const MAX: usize = 1024;

pub(super) type Key = [u8; 32];

pub(super) struct Cache {
    /// Of this process alone.
    secret: [u8; 32],
    verified: Mutex<HashMap<Key, Instant>>,
}

impl Default for Cache {
    fn default() -> Self {
        Cache { secret: rand::random(), verified: Mutex::default() }
    }
}

impl Cache {
    pub(super) fn key(&self, name: &str, password: &str, hash: &str) -> Key {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("any length will do");
        for part in [name, password, hash] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.has_at(key, Instant::now())
    }

    pub(super) fn insert(&self, key: Key) {
        self.insert_at(key, Instant::now());
    }

    fn has_at(&self, key: &Key, now: Instant) -> bool {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(key).is_some_and(|at| now.saturating_duration_since(*at) < KEPT)
    }

    fn insert_at(&self, key: Key, now: Instant) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= MAX {
            verified.retain(|_, at| now.saturating_duration_since(*at) < KEPT);
        }
        if verified.len() >= MAX
            && let Some(oldest) = verified.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
        {
            verified.remove(&oldest);
        }
        verified.insert(key, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_verified_is_known_for_a_minute_and_only_that() {
        let (cache, now) = (Cache::default(), Instant::now());
        let key = cache.key("bob", "secret", "hash");
        cache.insert_at(key, now);
        assert!(cache.has_at(&key, now + KEPT - Duration::from_millis(1)));
        assert!(!cache.has_at(&key, now + KEPT));
        for (name, password, hash) in [
            ("bob", "secret", "other"),
            ("bob", "other", "hash"),
            ("eve", "secret", "hash"),
            ("bobs", "ecret", "hash"),
        ] {
            assert!(!cache.has_at(&cache.key(name, password, hash), now), "{name} {password} {hash}");
        }
        assert_ne!(Cache::default().key("bob", "secret", "hash"), key, "each process has a key of its own");
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let (cache, now) = (Cache::default(), Instant::now());
        let key = |i: usize| cache.key(&i.to_string(), "", "");
        for i in 0..MAX + 10 {
            cache.insert_at(key(i), now + Duration::from_millis(i as u64));
        }
        assert_eq!(cache.verified.lock().unwrap().len(), MAX);
        assert!(!cache.has_at(&key(0), now) && cache.has_at(&key(MAX + 9), now), "the oldest goes");
    }
}
