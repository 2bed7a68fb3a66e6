//! What a worker does about the source's version.

use super::*;
use crate::follow::versions::Version;

const fn version(number: u64, tick: u64) -> Version {
    Version { number, tick }
}

/// A subscription that is at the end of its source, which is pruned then.
async fn pruned(on_purged: &str) -> World {
    let mut world = world();
    world.source.commit(3);
    world.source.lock().version = version(1, 0);
    let on_purged = on_purged.to_owned();
    world.start(Subscription { on_purged, ..subscription() });
    world.until("the copy", |world| world.target.lock().version == Some(version(1, 0))).await;
    {
        let mut source = world.source.lock();
        (source.version, source.purged) = (version(2, 3), 3);
    }
    // Looks at the source again, as it does every ten seconds.
    world.target.lock().standing.refetch = true;
    world.until("it looked", |world| world.target.lock().fetched >= 2).await;
    world
}

#[tokio::test]
async fn a_pruned_source_is_copied_anew_once() {
    let world = pruned("reload").await;
    world.until("the version", |world| world.target.lock().version == Some(version(2, 3))).await;
    world.target.lock().standing.refetch = true;
    world.until("it looked again", |world| world.target.lock().fetched >= 3).await;
    world.source.commit(1);
    world.until("the changes", |world| world.position() == Some(4)).await;
    let target = world.target.lock();
    assert_eq!((target.reloads, target.loads, target.copied.len()), (1, 2, 2));
}

#[tokio::test]
async fn whoever_is_not_to_reload_goes_on_with_the_version_that_it_has() {
    let world = pruned("stop").await;
    world.source.commit(1);
    world.until("the changes", |world| world.position() == Some(4)).await;
    let target = world.target.lock();
    assert_eq!((target.reloads, target.loads, target.version), (0, 1, Some(version(1, 0))));
}

#[tokio::test]
async fn the_description_of_tables_is_fetched_anew_when_that_is_wanted() {
    let mut world = world();
    world.source.commit(1);
    world.start(subscription());
    world.until("it follows", |world| world.said("following", None)).await;
    let schemas = world.source.lock().schemas;
    world.target.lock().standing.refetch = true;
    world.until("it is fetched", |world| world.source.lock().schemas > schemas).await;
    world.until("it follows again", |world| !world.target.lock().standing.refetch).await;
}
