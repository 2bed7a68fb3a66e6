//! A deterministic simulator: whole clusters of real agents with fake servers, networks, disks and clocks.
//!
//! Everything follows from one seed. `SEED=17 cargo test --test sim one_seed -- --nocapture` replays a seed with its
//! whole trace; `SEEDS=20000 cargo test --release --test sim random_seeds` runs as many.

mod check;
mod client;
mod disk;
mod happen;
mod machine;
mod nemesis;
mod network;
mod observe;
mod ops;
mod postgres;
mod repair;
mod scenarios;
mod seeds;
mod standstill;
mod streams;
mod world;
