//! Scenarios on real clusters, one a file; one binary, because linking takes longer than a scenario. Each holds the
//! promises: what was acknowledged is there, and never do two nodes take writes. Run with `--test-threads=1`.

mod scenarios;
