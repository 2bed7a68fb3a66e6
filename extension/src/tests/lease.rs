//! The lease through SQL, as far as it goes in a transaction that is rolled back.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    #[pg_test(
        error = "cannot grant the lease of epoch 8999: it has not been opened, no epoch was ever opened"
    )]
    fn an_epoch_that_was_not_opened_gets_no_lease() {
        // `Spi::run` would assign a transaction id.
        let _ = Spi::connect(|client| {
            client.select("SELECT quorum.lease_renew(8999, 1000)", None, &[]).map(|_| ())
        });
    }

    #[pg_test(error = "cannot grant the lease of epoch 9000 in a transaction that has written")]
    fn an_epoch_that_is_not_committed_gets_no_lease() {
        Spi::run("SELECT quorum.open_epoch(9000, 1, 1, '0/1', 1, '{1,2,3}')").expect("the epoch is opened");
        let _ = Spi::run("SELECT quorum.lease_renew(9000, 1000)");
    }

    #[pg_test(error = "sent_at_ns lies too far back: the lease of epoch 8998 would have ended already")]
    fn the_first_lease_of_an_epoch_has_something_left() {
        let _ = Spi::run("SELECT quorum.lease_renew(8998, 1000, 1)");
    }

    #[pg_test(error = "a lease lasts 1 to 3600000 milliseconds, not 0")]
    fn a_lease_has_a_length() {
        let _ = Spi::run("SELECT quorum.lease_renew(9000, 0)");
    }

    #[pg_test(error = "an epoch is a positive number, not 0")]
    fn epochs_start_at_one() {
        let _ = Spi::run("SELECT quorum.lease_revoke(0)");
    }

    #[pg_test(error = "epoch must not be null")]
    fn an_epoch_is_needed() {
        let _ = Spi::run("SELECT quorum.lease_revoke(NULL)");
    }

    #[pg_test]
    fn without_a_fence_this_server_is_the_leader() {
        let row = "SELECT (quorum.is_leader(), l.valid, l.fenced)::text FROM quorum.lease() AS l";
        assert_eq!(Spi::get_one::<String>(row), Ok(Some("(t,f,f)".to_owned())));
    }

    #[pg_test(error = "cannot renew the lease of epoch 41: everything up to epoch 41 was revoked")]
    fn a_revoked_epoch_gets_no_lease() {
        Spi::run("SELECT quorum.lease_revoke(41, 'node 2')").expect("the epoch is revoked");
        let _ = Spi::run("SELECT quorum.lease_renew(41, 1000)");
    }
}
