//! The server's lease: a connection of its own that nothing else uses, so that no other work delays a renewal.

use super::error::{Result, sql, timed_out};
use super::process::{self, Status};
use super::session::{Manner, Repeating, Session};
use super::state::Inner;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

const CALL_LIMIT: Duration = Duration::from_millis(200);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(10);
/// How long a revocation that the server does not take is tried again; by then the lease has run out anyway.
const REVOKE_ATTEMPTS: u32 = 100;
const RENEW: &str = "SELECT quorum.lease_renew($1::int8, $2::int4, $3::int8)";

/// What is to be told to the server next. The newest call wins.
#[derive(Clone, Default)]
pub struct Lease {
    shared: Arc<(Mutex<Work>, Notify)>,
}

#[derive(Default, Debug, PartialEq, Eq)]
struct Work {
    renew: Option<Renewal>,
    revoke: Option<Revocation>,
    /// The highest epoch that was revoked: it is never renewed again.
    revoked: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Renewal {
    epoch: u64,
    sent_at_ns: u64,
    ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Revocation {
    epoch: u64,
    leader_hint: String,
    attempts: u32,
}

impl Work {
    fn renew(&mut self, renewal: Renewal) {
        let outdated = self
            .renew
            .as_ref()
            .is_some_and(|r| (r.epoch, r.sent_at_ns) > (renewal.epoch, renewal.sent_at_ns));
        if self.revoked.is_none_or(|r| renewal.epoch > r) && !outdated {
            self.renew = Some(renewal);
        }
    }

    fn revoke(&mut self, revocation: Revocation) {
        let epoch = revocation.epoch;
        self.revoked = self.revoked.max(Some(epoch));
        if self.renew.as_ref().is_some_and(|r| r.epoch <= epoch) {
            self.renew = None;
        }
        if self.revoke.as_ref().is_none_or(|r| r.epoch <= epoch) {
            self.revoke = Some(revocation);
        }
    }
}

impl Lease {
    fn change(&self, change: impl FnOnce(&mut Work)) {
        change(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.1.notify_one();
    }

    fn take(&self) -> (Option<Revocation>, Option<Renewal>) {
        let mut work = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        match work.revoke.take() {
            Some(revocation) => (Some(revocation), None),
            None => (None, work.renew.take()),
        }
    }

    pub fn renew(&self, epoch: u64, sent_at_ns: u64, ms: u64) {
        self.change(|w| w.renew(Renewal { epoch, sent_at_ns, ms }));
    }

    pub fn revoke(&self, epoch: u64, leader_hint: String) {
        self.change(|w| w.revoke(Revocation { epoch, leader_hint, attempts: 0 }));
    }
}

/// Serves the lease until the supervisor ends.
pub async fn run(inner: Arc<Inner>, lease: Lease) {
    let mut teller: Option<Repeating> = None;
    let mut complained = false;
    loop {
        if teller.as_ref().is_none_or(|t| t.session().is_closed()) {
            teller = None;
            let mut process = inner.process.subscribe();
            if process.wait_for(Option::is_some).await.is_err() {
                return;
            }
            if process::status(&inner.config.data_dir) != Some(Status::Ready) {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            let manner = Manner { connect: CONNECT_LIMIT, statement: CALL_LIMIT, ..Manner::default() };
            match Session::local(&inner.config, manner).await {
                Ok(session) => teller = Some(Repeating::new(session, RENEW)),
                Err(error) => {
                    tracing::trace!(%error, "the connection for the lease is not there");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        let Some(open) = &mut teller else { continue };
        let (revocation, renewal) = lease.take();
        let result = if let Some(revocation) = revocation {
            let result = revoke(open.session(), &revocation).await;
            if result.is_err() && revocation.attempts < REVOKE_ATTEMPTS {
                let attempts = revocation.attempts + 1;
                lease.change(|w| w.revoke(Revocation { attempts, ..revocation }));
            }
            result
        } else if let Some(renewal) = renewal {
            renew(open, &renewal).await
        } else {
            tokio::select! {
                () = lease.shared.1.notified() => {}
                () = open.session().closed() => teller = None,
            }
            continue;
        };
        match result {
            Ok(()) => complained = false,
            Err(error) => {
                if !complained {
                    tracing::warn!(%error, "the lease could not be told to the server; trying again with each renewal");
                }
                complained = true;
                teller = None;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn renew(teller: &mut Repeating, renewal: &Renewal) -> Result<()> {
    let ms = i32::try_from(renewal.ms).unwrap_or(i32::MAX);
    let (epoch, sent) = (renewal.epoch.cast_signed(), renewal.sent_at_ns.cast_signed());
    bounded("renewing the lease", teller.say(&[&epoch, &ms, &sent])).await
}

async fn revoke(session: &Session, revocation: &Revocation) -> Result<()> {
    let (epoch, hint) = (revocation.epoch.cast_signed(), &revocation.leader_hint);
    let statement = "SELECT quorum.lease_revoke($1::int8, $2::text)";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&epoch, Type::INT8), (hint, Type::TEXT)];
    bounded("revoking the lease", session.query_typed(statement, &parameters)).await
}

async fn bounded(
    what: &str,
    call: impl Future<Output = std::result::Result<Vec<Row>, tokio_postgres::Error>>,
) -> Result<()> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(result) => result.map(drop).map_err(sql(what)),
        Err(_) => Err(timed_out(format!("{what}: no answer within {CALL_LIMIT:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewal(epoch: u64, sent_at_ns: u64) -> Renewal {
        Renewal { epoch, sent_at_ns, ms: 750 }
    }

    #[test]
    fn a_revocation_goes_before_renewals_of_its_epoch_and_stays() {
        let lease = Lease::default();
        lease.renew(3, 10, 750);
        lease.renew(3, 20, 750);
        lease.renew(3, 15, 750);
        lease.revoke(3, "node 2".into());
        lease.renew(3, 30, 750);
        lease.renew(4, 40, 750);
        assert_eq!(lease.take().0.unwrap().epoch, 3);
        assert_eq!(lease.take(), (None, Some(renewal(4, 40))));
        assert_eq!(lease.take(), (None, None));
    }

    #[test]
    fn the_newest_renewal_wins() {
        let lease = Lease::default();
        lease.renew(3, 20, 750);
        lease.renew(3, 15, 750);
        assert_eq!(lease.take(), (None, Some(renewal(3, 20))));
    }
}
