//! Tests that run inside a server, each in a transaction that is rolled back (`cargo pgrx test`). What happens at
//! commit, between sessions and at the end of a server's life is tested from outside.

mod applier;
mod apply;
mod audit;
mod channels;
mod delta;
mod describe;
mod feed;
mod indexes;
#[cfg(test)]
mod learning;
mod lease;
mod neighbours;
mod privileges;
mod publications;
mod read;
mod readonly;
mod restore;
mod rewind_files;
mod sequences;
#[cfg(test)]
mod sessions;
mod slots;
mod statement_memory;
mod subscribe;
mod track;
mod versions;
#[cfg(test)]
mod withdrawing;
