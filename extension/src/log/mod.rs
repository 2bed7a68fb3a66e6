//! The change log in the server: what those who write it and those who cut it into batches share.

pub mod slots;
