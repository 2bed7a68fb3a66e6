//! What learning read-only statements costs those who read, and how fast what was learned is given out.

pub mod distinct;
mod fleet;
pub mod requests;
pub mod selects;
