//! One file a scenario.

mod bad_input;
mod bootstrap;
mod change_leader;
mod chaos;
mod cli;
mod db_config;
mod freeze_sidecar;
mod kill_node;
mod kill_postmaster;
mod kill_sidecar;
mod kill_under_load;
mod membership;
mod network;
mod partitioned_standby;
mod phantom_commits;
mod rejoin_by_clone;
mod rejoin_by_rewind;
mod rest_guards;
mod rest_statuses;
mod restart_barrier;
mod restart_cluster;
mod settings_under_load;
mod sick_machine;
mod stopped_standby;
mod two_and_a_witness;
mod weak_commits;
