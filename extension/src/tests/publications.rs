//! Publications as people and the sidecar see them in SQL.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn run(sql: &str) {
        Spi::run(sql).expect("it runs");
    }

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).expect("query runs").expect("query returns a value")
    }

    /// A publication of a channel, and its id.
    fn published(more: &str) -> i32 {
        run("SELECT quorum.create_channel('shop')");
        let sql = format!("SELECT quorum.publish('mirror', '{{http://10.0.0.1:8008}}', 'shop'{more})");
        Spi::get_one::<i32>(&sql).expect("it is made").expect("an id")
    }

    const STATE: &str =
        "SELECT concat_ws(' ', state, code, there_state, has_secret, has_own_secret, own_addresses, copy)
                         FROM quorum.publications";

    #[pg_test]
    fn a_publication_is_wanted_until_it_has_ended() {
        let id = published(", secret => 'hush', own_secret => 'hush too', own_addresses => '{http://a:1}'");
        assert_eq!(text(STATE), "wanted t t {http://a:1} error");
        run(&format!("SELECT quorum.report_publication({id}, 'failed', 'login', 'who are you?')"));
        assert_eq!(text(STATE), "failed login t t {http://a:1} error");
        run(&format!(
            r#"SELECT quorum.report_publication({id}, 'established', revision => 1, there => '{{"state": "following"}}')"#
        ));
        assert_eq!(text(STATE), "established following t t {http://a:1} error");
        run("SELECT quorum.alter_publication('mirror', own_secret => '', own_addresses => '{}')");
        assert_eq!(text(STATE), "established following t f error");
        assert_eq!(
            text(
                "SELECT p.revision || ' ' || x.done_revision FROM quorum.publication AS p, quorum.publication_status AS x"
            ),
            "2 1"
        );
        assert_eq!(text("SELECT quorum.unpublish('mirror')"), "removing");
        // What was tried before says nothing any more.
        run(&format!("SELECT quorum.report_publication({id}, 'established', revision => 2)"));
        run(&format!("SELECT quorum.report_publication({id}, 'removing', 'unreachable', 'nobody answers')"));
        assert_eq!(text(STATE), "removing unreachable following t f error");
        assert_eq!(text(&format!("SELECT quorum.publication_ended({id})::text")), "true");
        assert_eq!(text(&format!("SELECT quorum.publication_ended({id})::text")), "false");
        assert_eq!(text("SELECT quorum.publications_state()::text"), "[]");
    }

    #[pg_test]
    fn what_is_not_to_be_ended_is_not_forgotten() {
        let id = published("");
        assert_eq!(text(&format!("SELECT quorum.publication_ended({id})::text")), "false");
        assert_eq!(text("SELECT quorum.unpublish('mirror', force => true)"), "forgotten");
        assert_eq!(text("SELECT count(*)::text FROM quorum.publications"), "0");
    }

    #[pg_test]
    fn the_secrets_of_publications_are_shown_nowhere() {
        published(
            ", login => 'me', secret => 'hush', own_login => 'you', own_secret => 'hush too', ca => 'pem'",
        );
        let shown = "SELECT string_agg(p::text, ' ') || quorum.publications_state()::text FROM quorum.publications AS p";
        assert!(!text(shown).contains("hush"));
        for role in ["quorum_reader", "quorum_admin", "quorum_follower"] {
            let may =
                format!("SELECT has_any_column_privilege('{role}', 'quorum.publication', 'SELECT')::text");
            assert_eq!(text(&may), "false", "{role}");
        }
        run("SET LOCAL ROLE quorum_reader");
        assert_eq!(text("SELECT (quorum.publications_state('mirror') -> 0) ->> 'state'"), "wanted");
        assert_eq!(text("SELECT state FROM quorum.publications"), "wanted");
    }

    #[pg_test(error = "there is no channel shop")]
    fn only_what_is_there_is_published() {
        run("SELECT quorum.publish('mirror', '{http://10.0.0.1:8008}', 'shop')");
    }

    #[pg_test(
        error = "own_addresses are where the other cluster reaches this one, each of the form http://host:port or https://host:port"
    )]
    fn own_addresses_are_addresses() {
        published(", own_addresses => '{http://me:hush@a:1}'");
    }

    #[pg_test(error = "publication mirror exists")]
    fn a_publication_has_a_name_of_its_own() {
        published("");
        run("SELECT quorum.publish('mirror', '{http://10.0.0.2:8008}', 'shop')");
    }
}
