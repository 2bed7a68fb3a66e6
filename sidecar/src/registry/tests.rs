//! A registrar with a driver that makes every change at once, and counts how often it is asked.

use super::*;
use crate::follow::Board;
use crate::handle::{Asked, Traces};
use pgquorum_agent::logstore::Restored;
use pgquorum_agent::node::Node;
use pgquorum_agent::settings::Span;
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    registrar: Arc<Registrar>,
    view: watch::Sender<Arc<View>>,
    entries: Arc<AtomicUsize>,
}

fn world(lease_ms: u64) -> World {
    let mut view = Node::new(1, &Restored::default(), clock::now(), 1).view();
    (view.is_open_leader, view.member, view.at) = (true, true, clock::now() + 60_000);
    Arc::make_mut(&mut view.cluster).settings.registry_lease = Span(lease_ms);
    let (view, views) = watch::channel(Arc::new(view));
    let (requests, mut asked) = mpsc::channel::<Asked>(16);
    let entries = Arc::<AtomicUsize>::default();
    let (publisher, counter) = (view.clone(), Arc::clone(&entries));
    tokio::spawn(async move {
        while let Some(Asked { request, answer }) = asked.recv().await {
            let Request::Registry { changes, .. } = request else { panic!("{request:?}") };
            let index = counter.fetch_add(1, Ordering::Relaxed) as u64 + 1;
            let mut outcomes = Vec::new();
            publisher.send_modify(|view| {
                let cluster = Arc::make_mut(&mut Arc::make_mut(view).cluster);
                outcomes = cluster.apply_registry(index, 1, &changes);
            });
            // As long as a majority takes.
            sleep(Duration::from_millis(20)).await;
            let _ = answer.send(Ok(Reply::Registry { outcomes }));
        }
    });
    let handle = Handle {
        view: views,
        requests,
        traces: Traces::default(),
        weak_commits: watch::channel(Vec::new()).1,
        subscriptions_changed: Arc::new(Notify::new()),
        subscriptions: Board::default(),
        server: None,
    };
    World { registrar: Registrar::start(handle), view, entries }
}

impl World {
    async fn register(&self, name: &str) -> RegistryOutcome {
        let server = Registration {
            server: name.to_owned(),
            public_url: "http://shop".to_owned(),
            cluster_url: format!("http://{name}"),
            location: Value::Null,
        };
        let view = Arc::clone(&self.view.borrow());
        self.registrar.register(&view, "shop", server).await.unwrap()
    }

    fn names(&self) -> Vec<String> {
        let view = self.view.borrow();
        let shop = view.cluster.registry.of_type("shop");
        shop.map_or_else(Vec::new, |shop| shop.servers.keys().cloned().collect())
    }
}

#[tokio::test]
async fn who_comes_at_the_same_time_shares_an_entry_and_renewals_need_none() {
    let world = world(60_000);
    let names: Vec<String> = (0..300).map(|i| format!("s{i:03}")).collect();
    let outcomes = futures_util::future::join_all(names.iter().map(|name| world.register(name))).await;
    assert!(outcomes.iter().all(|outcome| *outcome == RegistryOutcome::Done));
    assert_eq!(world.names(), names);
    let entries = world.entries.load(Ordering::Relaxed);
    assert!(
        (2..=4).contains(&entries),
        "{entries} entries: one for the first, then as many as may be in one"
    );
    for name in &names {
        assert_eq!(world.register(name).await, RegistryOutcome::Known);
    }
    assert_eq!(world.entries.load(Ordering::Relaxed), entries);
    let body = |kind: &str| {
        let view = world.view.borrow();
        world.registrar.body(kind, view.cluster.registry.of_type(kind).unwrap())
    };
    let before = body("shop");
    assert_eq!(before.as_ptr(), body("shop").as_ptr(), "it is written once");
    world.register("another").await;
    assert_ne!(before, body("shop"));
}

#[tokio::test]
async fn who_does_not_renew_is_removed_by_the_leader_alone() {
    let world = world(1000);
    world.register("a").await;
    world.register("b").await;
    let began = Instant::now();
    // Somebody else leads for a while.
    world.view.send_modify(|view| Arc::make_mut(view).is_open_leader = false);
    sleep(Duration::from_millis(300)).await;
    world.view.send_modify(|view| {
        let view = Arc::make_mut(view);
        (view.is_open_leader, view.term) = (true, view.term + 2);
    });
    while world.names().len() == 2 {
        assert_eq!(world.register("a").await, RegistryOutcome::Known);
        assert!(began.elapsed() < DEADLINE);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.names(), ["a"]);
    assert!(began.elapsed() > Duration::from_millis(2800), "{:?}", began.elapsed());
}
