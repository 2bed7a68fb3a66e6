//! SIGSTOP: what stands still answers nothing, closes nothing, forgets nothing, and may go on at any moment.

use super::{at_work, heals, isolate, next_primary, others};
use crate::standstill::Processes;
use crate::world::{Setup, World};
use pgquorum_agent::node::Input;
use pgquorum_agent::postgres::{PgObservation, PgProcess};
use pgquorum_agent::request::Request;
use pgquorum_agent::settings::{SettingsPatch, Span};

/// Three times the node timeout, a second until the next knock, the end of the lease, an election.
const NOTICED_MS: u64 = 6000;

fn acknowledges(w: &mut World) {
    let acks = w.check.acks.len();
    w.run(500);
    assert!(w.check.acks.len() > acks, "seed {}: nothing is acknowledged: {}", w.setup.seed, w.describe());
}

#[test]
fn a_leader_whose_server_stands_still_is_replaced() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, if seed % 3 == 0 { 5 } else { 3 }));
        let epoch = w.check.newest_epoch();
        w.freeze_server(leader, Processes::All);
        assert_ne!(next_primary(&mut w, epoch, 4000), leader, "seed {seed}");
        acknowledges(&mut w);
        w.thaw_server(leader);
        heals(w);
    }
}

/// It would hold its clients for ever, and the cluster has one standby less.
#[test]
fn a_replaced_server_that_stands_still_is_ended_and_comes_back() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        w.freeze_server(leader, if seed % 2 == 0 { Processes::All } else { Processes::Postmaster });
        assert_ne!(next_primary(&mut w, epoch, NOTICED_MS), leader, "seed {seed}");
        let end = w.now + 15_000;
        assert!(w.run_until(end, World::converged), "seed {seed}: {}", w.describe());
        heals(w);
    }
}

/// Nobody on its node remembers any more what that server was.
#[test]
fn a_sidecar_that_comes_beside_a_replaced_server_that_stands_still_ends_it() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        w.freeze_server(leader, Processes::All);
        w.kill_sidecar(leader);
        assert_ne!(next_primary(&mut w, epoch, NOTICED_MS), leader, "seed {seed}");
        w.start(leader);
        let end = w.now + 15_000;
        assert!(w.run_until(end, World::converged), "seed {seed}: {}", w.describe());
        heals(w);
    }
}

/// A control file can be older than it seems; what the server says itself counts then.
#[test]
fn a_server_that_is_taken_for_a_primary_and_shows_itself_as_a_standby_is_believed() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let standby = others(&w, leader)[0];
        w.kill_node(standby);
        w.start(standby);
        let end = w.now + 15_000;
        assert!(w.run_until(end, |w| w.machines[&standby].server.is_running()), "seed {seed}");
        let looks = PgObservation {
            process: PgProcess::Starting,
            pid: w.machines[&standby].server.pid(),
            in_production: true,
            ..PgObservation::default()
        };
        w.input(standby, Input::Postgres(Box::new(looks)));
        let end = w.now + 30_000;
        assert!(w.run_until(end, World::converged), "seed {seed}: {}", w.describe());
        heals(w);
    }
}

/// A standby that stands still is nobody's rival, and may be busy: it is left to whoever stopped it.
#[test]
fn a_sidecar_that_comes_beside_a_standby_that_stands_still_leaves_it() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let standby = others(&w, leader)[0];
        let run = w.machines[&standby].server.run;
        w.freeze_server(standby, Processes::All);
        w.kill_sidecar(standby);
        w.run(500);
        w.start(standby);
        w.run(15_000);
        assert_eq!(w.machines[&standby].server.run, run, "seed {seed}");
        w.thaw_server(standby);
        heals(w);
    }
}

/// It lost its leadership, gets it back because its server runs, and just then that stands still.
#[test]
fn a_primary_that_stands_still_when_it_is_appointed_again_is_not_waited_for() {
    let mut again = 0;
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let (epoch, standbys) = (w.check.newest_epoch(), others(&w, leader));
        isolate(&mut w, leader);
        w.net.block_both(standbys[0], standbys[1]);
        let (from, end) = (w.now, w.now + 4000);
        let deposed = |t: &(u64, u64, &str, String)| t.0 >= from && t.1 == leader && t.2 == "deposed";
        assert!(w.run_until(end, |w| w.traces.iter().any(deposed)), "seed {seed}");
        w.freeze_server(leader, Processes::All);
        w.heal_network();
        assert_ne!(next_primary(&mut w, epoch, NOTICED_MS), leader, "seed {seed}");
        again += usize::from(w.check.appointments.range(epoch + 1..).any(|(_, a)| a.node == leader));
        // Nobody thaws it.
        let end = w.now + 15_000;
        assert!(w.run_until(end, World::converged), "seed {seed}: {}", w.describe());
        heals(w);
    }
    assert!(again > 0, "no leader was appointed again");
}

/// It may be promoted at any moment, long after others have given it up.
#[test]
fn a_standby_that_stands_still_when_it_is_appointed_is_not_waited_for() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 5));
        let epoch = w.check.newest_epoch();
        w.kill_node(leader);
        let appointed = |w: &World| w.check.appointments.range(epoch + 1..).next().map(|(_, a)| a.node);
        let end = w.now + 4000;
        while w.now < end && appointed(&w).is_none() {
            w.run(1);
        }
        let first = appointed(&w).expect("somebody is appointed");
        w.run(seed * 8);
        w.freeze_server(first, Processes::All);
        if w.check.newest_epoch() == epoch {
            assert_ne!(next_primary(&mut w, epoch, NOTICED_MS), first, "seed {seed}");
        }
        w.thaw_server(first);
        heals(w);
    }
}

/// Whoever is connected goes on writing until another leads.
#[test]
fn a_leader_whose_postmaster_stands_still_is_replaced() {
    let mut knocked = 0;
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        w.freeze_server(leader, Processes::Postmaster);
        acknowledges(&mut w);
        assert_ne!(next_primary(&mut w, epoch, NOTICED_MS), leader, "seed {seed}");
        acknowledges(&mut w);
        knocked += u64::from(w.traces.iter().any(|t| t.2 == "stuck" && t.3.contains("no new sessions")));
        w.thaw_server(leader);
        heals(w);
    }
    assert!(knocked > 0, "no leader found out that nobody gets in");
}

#[test]
fn a_short_standstill_deposes_nobody() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        for _ in 0..3 {
            w.freeze_server(leader, Processes::All);
            w.run(1500);
            w.thaw_server(leader);
            acknowledges(&mut w);
        }
        assert_eq!(w.check.newest_epoch(), epoch, "seed {seed}");
        heals(w);
    }
}

/// The machine stands still in the midst of commits. When another leads its server goes on, and nobody is there to stop it:
/// some commits had passed the check of the lease, some were written, of some the confirmation lies in the kernel.
#[test]
fn what_stood_still_goes_on_beside_the_next_epoch() {
    let mut late = 0;
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let (epoch, standbys) = (w.check.newest_epoch(), others(&w, leader));
        w.client_ms = 2;
        // Only one standby gets the last writes, or both do.
        if seed % 2 == 0 {
            w.net.wal_blocks.extend([(leader, standbys[0]), (standbys[0], leader)]);
        }
        w.run(100 + seed);
        w.freeze(leader);
        w.freeze_server(leader, Processes::All);
        let end = w.machines[&leader].server.end();
        assert_ne!(next_primary(&mut w, epoch, 6000), leader, "seed {seed}");
        acknowledges(&mut w);
        w.thaw_server(leader);
        w.run(1000);
        w.assert_sound();
        let m = &w.machines[&leader];
        assert!(!m.server.lease_holds(m.clock(w.now)), "seed {seed}: it takes writes");
        late += u64::from(m.server.end() > end);
        w.thaw(leader);
        heals(w);
    }
    assert!(late > 3, "next to nothing went on: {late}");
}

/// With so long a lease the server still has it when another node is asked to lead, and the word that it is over waits with
/// everything else. Where commits wait for nobody, only time keeps two servers from acknowledging at once.
#[test]
fn a_lease_that_outlasts_a_standstill_is_waited_for_where_commits_wait_for_nobody() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3).with_k(0));
        let patch = SettingsPatch { node_timeout: Some(Span(5_000)), ..SettingsPatch::default() };
        w.request(leader, Request::SetSettings { patch });
        // Until the shorter one counts no more.
        w.run(15_000);
        let epoch = w.check.newest_epoch();
        w.freeze_server(leader, Processes::All);
        let offered = |w: &World| w.traces.iter().any(|t| t.2 == "hand-over" && t.1 == leader);
        let end = w.now + 4000;
        assert!(w.run_until(end, offered), "seed {seed}: {}", w.describe());
        w.client_ms = 2;
        w.run(600 + seed * 60);
        w.thaw_server(leader);
        let m = &w.machines[&leader];
        assert!(m.server.lease_holds(m.clock(w.now)), "seed {seed}: the scenario needs a lease that holds");
        next_primary(&mut w, epoch, 15_000);
        w.run(1000);
        heals(w);
    }
}

/// It streams and acknowledges, whatever its sidecar wants; so its sidecar promises nothing.
#[test]
fn a_standby_whose_postmaster_stands_still_gives_no_pledge() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let (epoch, standby) = (w.check.newest_epoch(), others(&w, leader)[seed as usize % 2]);
        w.freeze_server(standby, Processes::Postmaster);
        isolate(&mut w, leader);
        for peer in others(&w, leader) {
            w.net.wal_open.extend([(leader, peer), (peer, leader)]);
        }
        w.run(9000);
        assert_eq!(w.check.newest_epoch(), epoch, "seed {seed}: one pledge of three was enough");
        w.thaw_server(standby);
        assert_ne!(next_primary(&mut w, epoch, 5000), leader, "seed {seed}");
        heals(w);
    }
}
