//! One cluster follows some rows of another: the copy, the changes after it, and another filter.

use pgquorum_tests::{PATIENCE, Pair, await_until, pgquorum};
use serde_json::json;

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, region text, note text); CREATE TABLE plain (id int PRIMARY KEY)";

#[test]
fn some_rows_are_copied_and_followed() {
    let pair = Pair::start((1, 1), TABLES);
    pair.source.sql(
        "INSERT INTO orders SELECT g, CASE WHEN g % 10 = 0 THEN 'eu' ELSE 'us' END, 'x' FROM generate_series(1, 2000) AS g; \
         INSERT INTO plain SELECT generate_series(1, 10)",
    );
    pair.track(&["orders", "plain"]);
    let url = format!("http://127.0.0.1:{}", pair.target.node(1).api_port());
    let cli = |args: &[&str]| {
        let found = pgquorum(args.iter().copied().chain(["--url", &url]));
        assert_eq!(found.code, 0, "{args:?}: {}", found.said);
    };
    let remote = pair.remote()[0].as_str().expect("an address").to_owned();
    let subscribe = ["subscribe", "mirror", "--remote", &remote, "--channel", "shop", "--wait"];
    cli(&[&subscribe[..], &["--filter", "public.orders=region = 'eu'"]].concat());
    let wanted = "(SELECT * FROM orders WHERE region = 'eu')";
    pair.assert_same(wanted);
    pair.assert_same("plain");
    assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM orders"), "200");
    // Only those were sent.
    let tables = pair.target.get(1, "/subscriptions/mirror/tables").1;
    assert_eq!(
        (&tables[0]["rows"], &tables[0]["filter"]),
        (&json!(200), &json!("region = 'eu'")),
        "{tables}"
    );
    pair.source.sql(
        "UPDATE orders SET region = 'eu', note = 'moved' WHERE id % 10 = 1; UPDATE orders SET region = 'us' WHERE id % 20 = 0; \
         DELETE FROM orders WHERE id < 100; INSERT INTO orders VALUES (5000, 'eu', 'new'), (5001, 'us', 'new')",
    );
    pair.await_applied();
    pair.assert_same(wanted);
    assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM orders WHERE region = 'us'"), "0");
    // Another one, and the table copied by it.
    cli(&["subscriptions", "set", "mirror", "--filter", "public.orders=region = 'us' AND id > 1500"]);
    pair.target.sql("DELETE FROM orders");
    let path = "/subscriptions/mirror/tables/public.orders/resume";
    assert_eq!(pair.target.post(1, path, Some(&json!({"copy": true}))).0, 200);
    await_until(PATIENCE, "the table is copied", || {
        let tables = pair.target.get(1, "/subscriptions/mirror/tables").1;
        if tables[0]["state"] == "following" { Ok(()) } else { Err(tables.to_string()) }
    });
    pair.await_applied();
    pair.assert_same("(SELECT * FROM orders WHERE region = 'us' AND id > 1500)");
    assert_eq!(
        pair.target.ask(1, "SELECT count(*)::text FROM orders WHERE region = 'eu' OR id <= 1500"),
        "0"
    );
    // What is no condition is refused, where it is given and where it is asked.
    let wrong = json!({"filter": {"public.orders": "region = (SELECT 'eu')"}});
    let (status, answer) = pair.target.send(1, "PATCH", "/subscriptions/mirror", Some(&wrong));
    assert_eq!((status, &answer["code"]), (400, &json!("refused_by_database")), "{answer}");
    let copy = pair.source.post(1, "/channels/shop/copies", None).1;
    let id = copy["id"].as_str().expect("a copy");
    for (condition, status) in
        [("id%3C5", 200), ("id%20%3D%20now()", 400), ("1)%20UNION%20SELECT%20(1", 400), ("no%3D1", 400)]
    {
        let path = format!("/channels/shop/copies/{id}/public.orders?where={condition}");
        assert_eq!(pair.source.get(1, &path).0, status, "{condition}");
    }
}
