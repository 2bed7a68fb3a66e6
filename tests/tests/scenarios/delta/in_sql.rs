//! The delta interface in SQL.

use super::{BASES, World, done};
use postgres::SimpleQueryMessage;
use serde_json::{Value, json};

/// By whoever may administer, who waits for the sidecar.
pub fn asked(world: &World) {
    let target = &world.pair.target;
    let call = |statement: &str| {
        let mut client = target.connect(target.leader()).expect("a session");
        client.batch_execute("SET ROLE quorum_admin").expect("SET ROLE");
        client.simple_query(statement).map_err(|error| {
            let db = error.as_db_error().unwrap_or_else(|| panic!("{statement}: {error}"));
            (db.code().code().to_owned(), db.detail().unwrap_or_default().to_owned())
        })
    };
    world.rest(true);
    world.pair.source.sql("INSERT INTO t VALUES (51, 'in SQL')");
    let rows = call("CALL quorum.sync('shop', records => true)").expect("it is synchronised");
    let results = rows.iter().find_map(|row| match row {
        SimpleQueryMessage::Row(row) => row.get("results").map(str::to_owned),
        _ => None,
    });
    let results: Value = serde_json::from_str(&results.expect("results")).expect("JSON");
    let last = results.as_array().and_then(|all| all.last()).expect("a result");
    assert_eq!(*last, json!({"success": true, "record": {"id": 51, "note": "in SQL"}}));
    assert_eq!(world.here("SELECT note FROM t WHERE id = 51"), "in SQL");
    assert_eq!(world.pair.state().expect("a state")["state"], "disabled");
    done(world.director, "POST", BASES[0], "/shop/database/prune");
    let (code, detail) = call("CALL quorum.sync('shop')").expect_err("another version");
    assert_eq!((code.as_str(), detail.as_str()), ("55000", "database_version_differs"));
    call("CALL quorum.sync_full('90 s')").expect("everything is synchronised");
    let version = |port| world.state(port)["databaseVersion"].clone();
    assert_eq!(version(world.worker()), version(world.director));
    world.pair.assert_same("t");
    assert_eq!(world.pair.state().expect("a state")["state"], "disabled");
    let (code, _) = call("CALL quorum.sync('none')").expect_err("no such channel");
    assert_eq!(code, "42704");
    let (code, _) = call("BEGIN; CALL quorum.sync_full()").expect_err("a transaction block");
    assert_eq!(code, "2D000");
    world.rest(false);
}
