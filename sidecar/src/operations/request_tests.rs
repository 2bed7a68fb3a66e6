//! The documented bodies, and every sentence about one that is wrong.

use super::*;
use serde_json::json;

fn parse(body: &Value) -> Result<Operation, Fault> {
    Operation::parse(body.as_object().unwrap())
}

fn refused(body: &Value) -> String {
    let fault = parse(body).expect_err(&body.to_string());
    assert_eq!(fault.status, 400, "{body}");
    fault.message
}

fn named(database: &str, schema: &str, table: &str) -> Named {
    let table = TableName { schema: schema.to_owned(), table: table.to_owned() };
    Named { database: database.to_owned(), table }
}

fn wanted(table: Named, subscribe: bool, publish: bool) -> Wanted {
    Wanted { table, subscribe, publish, start_us: None }
}

fn route(host: &str, port: u16) -> RouteTo {
    RouteTo { host: host.to_owned(), port }
}

#[test]
fn routes_are_read() {
    let routes = json!([{"host": "3.22.181.22", "port": 12345}, {"host": "dev.wing", "port": "11335"}]);
    let read = vec![route("3.22.181.22", 12345), route("dev.wing", 11335)];
    assert_eq!(
        parse(&json!({"operation": "cluster_set_routes", "server": "hub", "routes": routes})),
        Ok(Operation::SetRoutes { server: "hub".to_owned(), routes: read.clone() })
    );
    assert_eq!(
        parse(&json!({"operation": "cluster_delete_routes", "routes": routes})),
        Ok(Operation::DeleteRoutes { routes: read })
    );
    assert_eq!(parse(&json!({"operation": "cluster_get_routes"})), Ok(Operation::GetRoutes));
    assert_eq!(parse(&json!({"operation": "cluster_status"})), Ok(Operation::Status));
}

#[test]
fn nodes_are_read_in_all_their_forms() {
    let subscription = json!({"schema": "dev", "table": "dog", "subscribe": false, "publish": true});
    let body = |operation: &str| json!({"operation": operation, "node_name": "ec2-3-22-181-22", "subscriptions": [subscription]});
    let node = NodeRequest {
        name: "ec2-3-22-181-22".to_owned(),
        at: None,
        tables: vec![wanted(named("dev", "public", "dog"), false, true)],
    };
    for (operation, mode) in
        [("add_node", Mode::Add), ("update_node", Mode::Update), ("set_node_replication", Mode::Either)]
    {
        assert_eq!(parse(&body(operation)), Ok(Operation::Exchange { mode, node: node.clone() }));
    }
    // As clients of versions 2 and 3 say it.
    let old = json!({"operation": "add_node", "name": "n2", "host": "10.0.0.2", "port": 1115,
        "subscriptions": [{"channel": "dev:dog", "subscribe": true, "publish": false}]});
    let read = NodeRequest {
        name: "n2".to_owned(),
        at: Some(route("10.0.0.2", 1115)),
        tables: vec![wanted(named("dev", "public", "dog"), true, false)],
    };
    assert_eq!(parse(&old), Ok(Operation::Exchange { mode: Mode::Add, node: read }));
    // Without a database it is `data`; a table may say its schema; what is said last counts.
    let new = json!({"operation": "set_node_replication", "node_name": "n2", "subscriptions": [
        {"table": "dog", "subscribe": true, "publish": true},
        {"database": "dev", "table": "sales.Order", "subscribe": true, "publish": false,
         "start_time": "2026-01-02T03:04:05.678Z"},
        {"database": "data", "table": "public.dog", "subscribe": "false", "publish": false}]});
    let Ok(Operation::Exchange { node, .. }) = parse(&new) else { panic!() };
    let sales = Wanted {
        start_us: Some(1_767_323_045_678_000),
        ..wanted(named("dev", "sales", "Order"), true, false)
    };
    assert_eq!(node.tables, [sales, wanted(named("data", "public", "dog"), false, false)]);
    let bare = json!({"operation": "add_node", "name": "n2", "host": "h"});
    let Ok(Operation::Exchange { node, .. }) = parse(&bare) else { panic!() };
    assert_eq!((node.at, node.tables), (Some(route("h", 0)), Vec::new()));

    for field in ["name", "node_name"] {
        let remove = json!({"operation": "remove_node", field: "n2"});
        assert_eq!(parse(&remove), Ok(Operation::Remove { name: "n2".to_owned() }));
    }
    let all = json!({"operation": "configure_cluster", "connections": [
        {"node_name": "n2", "subscriptions": [{"schema": "dev", "table": "dog", "subscribe": true, "publish": true}]},
        {"node_name": "n3"}]});
    let Ok(Operation::Configure { nodes }) = parse(&all) else { panic!() };
    assert_eq!(
        nodes.iter().map(|node| (node.name.as_str(), node.tables.len())).collect::<Vec<_>>(),
        [("n2", 1), ("n3", 0)]
    );
}

#[test]
fn the_rest_is_read() {
    let network = |body: &Value| match parse(body) {
        Ok(Operation::Network { timeout, connected_nodes, routes }) => {
            (timeout.as_millis(), connected_nodes, routes)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(network(&json!({"operation": "cluster_network"})), (2000, true, true));
    let little =
        json!({"operation": "cluster_network", "timeout": 500, "connected_nodes": true, "routes": true});
    assert_eq!(network(&little), (500, false, false));
    let purge = |options: Value| {
        parse(&json!({"operation": "purge_stream", "database": "dev", "table": "dog", "options": options}))
    };
    let purged = |purged| Ok(Operation::Purge { table: named("dev", "public", "dog"), purged });
    assert_eq!(purge(json!({"keep": 100})), purged(Purged::Keep(100)));
    assert_eq!(purge(json!({"seq": 17.0})), purged(Purged::Before(17)));
    assert_eq!(purge(Value::Null), purged(Purged::Keep(0)));
    let login = json!({"operation": "set_configuration", "clustering_nodeName": "n1", "clustering_user": "cluster_user",
        "clustering_password": "s3cret"});
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        parse(&login),
        Ok(Operation::SetConfiguration(NewSelf {
            node_name: text("n1"),
            login: text("cluster_user"),
            secret: text("s3cret"),
            ca: None
        }))
    );
    let token =
        json!({"operation": "set_configuration", "clustering_token": "pgq_1_2", "clustering_ca": null});
    assert_eq!(
        parse(&token),
        Ok(Operation::SetConfiguration(NewSelf {
            node_name: None,
            login: text(""),
            secret: text("pgq_1_2"),
            ca: text("")
        }))
    );
}

#[test]
fn what_is_wrong_is_said_in_known_words() {
    let sub = |more: Value| {
        let mut sub = json!({"schema": "dev", "table": "dog", "subscribe": true, "publish": true});
        for (name, value) in more.as_object().unwrap() {
            sub[name] = value.clone();
        }
        json!({"operation": "add_node", "node_name": "n2", "subscriptions": [sub]})
    };
    for (body, sentence) in [
        (json!({}), "Request body must include an 'operation' property."),
        (json!({"operation": ""}), "Request body must include an 'operation' property."),
        (json!({"operation": 5}), "'operation' must be a string"),
        (json!({"operation": "drop_schema"}), "Operation 'drop_schema' not found"),
        (json!({"operation": "add_node"}), "'node_name' is required"),
        (json!({"operation": "add_node", "name": ""}), "'name' is not allowed to be empty"),
        (json!({"operation": "add_node", "node_name": 5}), "'node_name' must be a string"),
        (json!({"operation": "remove_node"}), "'node_name' is required"),
        (
            json!({"operation": "add_node", "node_name": "dev.cow"}),
            "'node_name' invalid, must not contain ., * or >",
        ),
        (
            json!({"operation": "add_node", "node_name": "dev cow"}),
            "'node_name' invalid, must not contain ., * or >",
        ),
        (
            json!({"operation": "add_node", "node_name": "k\u{fc}he"}),
            "'node_name' invalid, it has 1 to 50 letters, digits, _ and -",
        ),
        (
            json!({"operation": "add_node", "node_name": "n2", "subscriptions": {}}),
            "'subscriptions' must be an array",
        ),
        (
            json!({"operation": "add_node", "node_name": "n2", "subscriptions": ["dev:dog"]}),
            "'subscriptions[0]' must be of type object",
        ),
        (
            json!({"operation": "add_node", "node_name": "n2", "host": "h", "port": 0}),
            "'port' must be a valid port",
        ),
        (sub(json!({"publish": null})), "'subscriptions[0].publish' is required"),
        (
            sub(json!({"subscribe": "yes", "publish": "no"})),
            "'subscriptions[0].subscribe' must be a boolean. 'subscriptions[0].publish' must be a boolean",
        ),
        (sub(json!({"table": null})), "'subscriptions[0].table' is required"),
        (sub(json!({"table": "a."})), "'subscriptions[0].table' must be of the form table or schema.table"),
        (sub(json!({"channel": "dog"})), "'subscriptions[0].channel' must be of the form schema:table"),
        (sub(json!({"start_time": "soon"})), "'subscriptions[0].start_time' must be in ISO 8601 date format"),
        (json!({"operation": "cluster_set_routes"}), "'server' is required. 'routes' is required"),
        (
            json!({"operation": "cluster_set_routes", "server": "harperdb", "routes": []}),
            "'server' must be one of [hub, leaf]",
        ),
        (
            json!({"operation": "cluster_set_routes", "server": "hub", "routes": [{"ip": "1.2.3.4", "port": 12345}]}),
            "'routes[0].host' is required",
        ),
        (
            json!({"operation": "cluster_set_routes", "server": "hub", "routes": [{"host": "http://a", "port": "x"}]}),
            "'routes[0].host' must be a valid hostname. 'routes[0].port' must be a valid port",
        ),
        (
            json!({"operation": "cluster_delete_routes", "routes": [{"host": "a"}]}),
            "'routes[0].port' is required",
        ),
        (json!({"operation": "cluster_network", "timeout": "soon"}), "'timeout' must be a number"),
        (
            json!({"operation": "cluster_network", "timeout": 0}),
            "'timeout' must be greater than or equal to 1",
        ),
        (json!({"operation": "cluster_network", "routes": 1}), "'routes' must be a boolean"),
        (json!({"operation": "configure_cluster"}), "'connections' is required"),
        (
            json!({"operation": "configure_cluster", "connections": [{"subscriptions": [{}]}]}),
            "'connections[0].node_name' is required. 'connections[0].subscriptions[0].table' is required. \
             'connections[0].subscriptions[0].subscribe' is required. 'connections[0].subscriptions[0].publish' is required",
        ),
        (
            json!({"operation": "configure_cluster", "connections": [{"node_name": "a"}, {"node_name": "a"}]}),
            "'connections[1].node_name' is there twice",
        ),
        (json!({"operation": "purge_stream"}), "'database' is required. 'table' is required"),
        (
            json!({"operation": "purge_stream", "database": "dev", "table": "dog", "options": {"keep": -1}}),
            "'keep' must be greater than or equal to 0",
        ),
        (
            json!({"operation": "purge_stream", "schema": "dev", "table": "dog", "options": {"keep": 1, "seq": 1}}),
            "'options' contains a conflict between exclusive peers [keep, seq]",
        ),
        (
            json!({"operation": "set_configuration", "clustering_password": 5}),
            "'clustering_password' must be a string",
        ),
        (
            json!({"operation": "set_configuration", "clustering_nodeName": "a.b"}),
            "'clustering_nodeName' invalid, must not contain ., * or >",
        ),
    ] {
        assert_eq!(refused(&body), sentence, "{body}");
    }
    let unknown = refused(&json!({"operation": "set_configuration", "logging_level": "trace"}));
    assert!(unknown.starts_with("'logging_level' cannot be set"), "{unknown}");
}

#[test]
fn a_secret_is_in_no_sentence_and_in_no_debug_output() {
    let body = json!({"operation": "set_configuration", "clustering_password": "s3cret", "clustering_token": "s3cret"});
    assert!(!refused(&body).contains("s3cret"));
    let body = json!({"operation": "set_configuration", "clustering_password": "s3cret"});
    assert!(!format!("{:?}", parse(&body)).contains("s3cret"));
}

#[test]
fn what_one_cluster_writes_the_other_reads() {
    let described = Described {
        named: named("dev", "public", "dog"),
        subscribe: true,
        publish: false,
        description: Some(json!({"columns": [], "key": []})),
        position: Some("3:17".to_owned()),
    };
    let body = json!({"operation": "mirror_node", "node_name": "n1", "addresses": ["http://10.0.0.1:8008"],
        "subscriptions": [described]});
    let mirror = Operation::Mirror {
        from: "n1".to_owned(),
        addresses: vec!["http://10.0.0.1:8008".to_owned()],
        tables: vec![described],
    };
    assert_eq!(parse(&body), Ok(mirror));
    let tables = json!([named("dev", "sales", "dog")]);
    // The schema of PostgreSQL, not the one that was another word for the database.
    let body = json!({"operation": "describe_tables", "tables": tables});
    assert_eq!(parse(&body), Ok(Operation::DescribeTables { tables: vec![named("dev", "sales", "dog")] }));
    assert!(
        refused(&json!({"operation": "mirror_node", "node_name": "n1", "subscriptions": []}))
            .contains("addresses")
    );
}
