//! The change log in the server: what those who write it and those who cut it into batches share.

#[allow(dead_code)] // half of it is for the one who reads the log
pub mod slots;
