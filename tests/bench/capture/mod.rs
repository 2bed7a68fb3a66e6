//! What capturing changes costs those who write.

pub mod bulk;
pub mod memory;
mod slices;
pub mod systems;
pub mod tpcb;
pub mod updates;
