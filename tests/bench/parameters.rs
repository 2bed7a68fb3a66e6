//! Servers like a cluster's leader, but without what is ours.

use pgquorum_tests::Cluster;

/// What belongs to the one server, or is what shall be measured.
const OWN: &str = "'port', 'listen_addresses', 'unix_socket_directories', 'cluster_name', 'primary_conninfo', \
                   'primary_slot_name', 'shared_preload_libraries', 'synchronous_standby_names', 'lc_messages', \
                   'lc_monetary', 'lc_numeric', 'lc_time', 'default_text_search_config', 'restore_command'";

/// The lines of `postgresql.conf` that make another server like this cluster's leader.
pub fn of_leader(cluster: &Cluster) -> String {
    let sql = format!(
        "SELECT string_agg(format('%s = ''%s''', name, replace(setting, '''', '''''')), E'\\n') || E'\\n' FROM pg_settings \
         WHERE source = 'configuration file' AND name NOT LIKE 'pgquorum.%' AND name NOT IN ({OWN})"
    );
    cluster.ask(cluster.leader(), &sql)
}
