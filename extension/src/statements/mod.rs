//! Which statements write nothing, so that a replica can run them.
//!
//! * `proof` – what is known of a statement from its analysed and rewritten tree, before it runs: `examine`;
//! * `functions` – data: the built-in functions that must not be judged by their volatility, with a reason each;
//! * `explain` – the same answer for people, in SQL.
//!
//! What is met in a tree, and what the catalogue says of it, is found by `pg::query_walk` and `pg::catalog`.

pub mod explain;
pub mod functions;
pub mod proof;
