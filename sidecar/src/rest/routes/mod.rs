//! One file for each resource.

pub(super) mod changes;
pub(super) mod channel;
pub(super) mod channel_tables;
pub(super) mod channel_upkeep;
pub(super) mod channels;
pub(super) mod config;
pub(super) mod copies;
pub(super) mod db_config;
pub(super) mod documents;
pub(super) mod dump;
pub(super) mod events;
pub(super) mod followers;
pub(super) mod health;
pub(super) mod info;
pub(super) mod is_leader;
pub(super) mod leader;
pub(super) mod map;
pub(super) mod metrics;
pub(super) mod node;
pub(super) mod node_down;
pub(super) mod rpc;
pub(super) mod schemas;
pub(super) mod sql;
pub(super) mod stream;
pub(super) mod user_tokens;
pub(super) mod users;
