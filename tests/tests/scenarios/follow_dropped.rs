//! What becomes of a table at the source that its changes do not tell: it is dropped, renamed, loses a partition, is not tracked for a
//! while. The table here stops alone and says why, until somebody says how it goes on.

use pgquorum_tests::{Pair, pgquorum};
use serde_json::{Value, json};

const TABLES: &str = "CREATE TABLE fine (id int PRIMARY KEY); CREATE TABLE gone (id int PRIMARY KEY); CREATE TABLE named (id int PRIMARY KEY);
    CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2)";

fn ids(pair: &Pair, table: &str) -> String {
    let sql = format!("SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '-') FROM {table}");
    pair.target.ask(1, &sql)
}

#[test]
fn what_changes_do_not_tell_stops_the_table_and_is_said() {
    let pair = Pair::start((1, 1), TABLES);
    pair.source.sql("CREATE TABLE absent (id int PRIMARY KEY)");
    pair.source.sql("INSERT INTO fine VALUES (1); INSERT INTO gone VALUES (1); INSERT INTO named VALUES (1); INSERT INTO parts VALUES (1), (2)");
    pair.track(&["fine", "gone", "named", "parts", "absent"]);
    let url = format!("http://127.0.0.1:{}", pair.target.node(1).api_port());
    let remote = pair.remote()[0].as_str().expect("an address").to_owned();
    // It follows, but one table could not be copied: that is no success.
    let subscribe = ["subscribe", "mirror", "--remote", &remote, "--channel", "shop", "--copy", "truncate"];
    let found = pgquorum(subscribe.iter().chain(&["--wait", "--url", &url]));
    assert_eq!(found.code, 1, "{}", found.said);
    for said in ["tables_stopped", "public.absent (42P01)"] {
        assert!(found.said.contains(said), "{said:?} is not in {}", found.said);
    }
    pair.await_state("following", None);

    pair.source.sql("INSERT INTO gone VALUES (2); DROP TABLE gone");
    pair.source.sql("ALTER TABLE named RENAME TO renamed; INSERT INTO renamed VALUES (2)");
    pair.source.sql("ALTER TABLE parts DETACH PARTITION parts_2; INSERT INTO fine VALUES (2)");
    let misfits = [
        ("gone", "PQ016", "was dropped at the source"),
        ("named", "PQ016", "another name"),
        ("parts", "PQ018", "a partition was detached"),
    ];
    for (table, code, words) in misfits {
        let message = pair.await_table(table, "stopped", Some(code));
        assert!(message.contains(words), "{table}: {message:?}");
        let sql = format!(
            "SELECT concat_ws(' ', state, code, message) FROM quorum.subscription_tables WHERE \"table\" = '{table}'"
        );
        assert_eq!(pair.target.ask(1, &sql), format!("stopped {code} {message}"));
        let shown = pgquorum(["subscriptions", "show", "mirror", "--url", &url]).expect("subscriptions show");
        let all = shown["its_tables"].as_array();
        let shown: Option<&Value> = all.and_then(|all| all.iter().find(|one| one["table"] == table));
        assert_eq!(shown.map(|one| &one["message"]), Some(&json!(message)), "{table}");
    }
    pair.await_applied();
    pair.assert_same("fine");
    // What was changed before that is here, and nothing was taken away.
    assert_eq!([ids(&pair, "gone"), ids(&pair, "named"), ids(&pair, "parts")], ["1,2", "1", "1,2"]);
    // Under its new name it is another table, which is not here yet.
    pair.await_table("renamed", "stopped", Some("42P01"));
    pair.target.sql("ALTER TABLE named RENAME TO renamed");
    for table in ["renamed", "parts"] {
        pair.resume(table, true);
        pair.await_table(table, "following", None);
    }
    pair.source.sql("INSERT INTO renamed VALUES (3); DELETE FROM parts");
    pair.await_applied();
    ["fine", "renamed", "parts"].iter().for_each(|table| pair.assert_same(table));

    // Where nothing is copied, nothing fills the gap.
    assert_eq!(pair.target.send(1, "DELETE", "/subscriptions/mirror", None).0, 200);
    pair.subscribe(&json!({"copy": "none", "tables": ["public.fine", "public.renamed"]}));
    pair.await_state("following", None);
    pair.source
        .sql("INSERT INTO fine VALUES (3); SELECT quorum.untrack('fine'); INSERT INTO fine VALUES (4)");
    pair.await_table("fine", "stopped", Some("PQ016"));
    pair.track(&["fine"]);
    pair.source.sql("INSERT INTO fine VALUES (5); INSERT INTO renamed VALUES (4)");
    let message = pair.await_table("fine", "stopped", Some("PQ018"));
    assert!(message.contains("tracks this table again") && message.contains("resume_table"), "{message:?}");
    pair.await_applied();
    pair.assert_same("renamed");
    assert_eq!(ids(&pair, "fine"), "1,2,3");
    pair.resume("fine", false);
    pair.await_table("fine", "following", None);
    assert_eq!(ids(&pair, "fine"), "1,2,3,5");
    pair.source.sql("DELETE FROM fine WHERE id = 1");
    pair.await_applied();
    assert_eq!(ids(&pair, "fine"), "2,3,5");
}
