//! Every route that there is, what it answers to, and which role each of its requests needs: the one place that says so.

use super::interface::Interface;
use pgquorum_agent::users::UserRole;
use warp::http::Method;

/// Who may send a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Everybody: what load balancers and orchestrators ask, and pages without data.
    Open,
    /// Any user. Nothing is there; it is told only to those who have a login.
    Login,
    /// Users with one of these roles. `admin` and `super_user` may everything and are not listed.
    Roles(&'static [UserRole]),
}

/// Look at the cluster and read channels.
const READER: Need = Need::Roles(&[UserRole::Reader, UserRole::Follower]);
/// Be a follower of channels: register, say how far it is, copy tables.
const FOLLOWER: Need = Need::Roles(&[UserRole::Follower]);
/// Change the cluster, its channels and its users.
const ADMIN: Need = Need::Roles(&[]);
const IMPORT: Need = Need::Roles(&[UserRole::ApiImport]);
const COUNTERS: Need = Need::Roles(&[UserRole::ApiImport, UserRole::ApiConfig]);
/// Read the log and copy tables by the replication interface.
const LOG_READER: Need = Need::Roles(&[UserRole::Follower, UserRole::ReplicationSync]);
/// Have tables here replaced by what another server has.
const REPLICATION: Need = Need::Roles(&[UserRole::ReplicationSync]);
/// Register servers, and say that they are gone.
const REGISTRY: Need = Need::Roles(&[UserRole::Cluster]);
/// See who is registered.
const REGISTERED: Need = Need::Roles(&[UserRole::Cluster, UserRole::Reader, UserRole::Follower]);
/// Ask all nodes for something that each of them looks at as if it had been asked directly.
const ANY_ROLE: Need = Need::Roles(&UserRole::ALL);

impl Need {
    /// Whether a user with these roles may.
    pub(super) fn allows<'a>(self, roles: impl IntoIterator<Item = &'a UserRole>) -> bool {
        match self {
            Need::Open | Need::Login => true,
            Need::Roles(needed) => roles.into_iter().any(|role| role.is_mighty() || needed.contains(role)),
        }
    }

    /// Whether it is something for those who come with a token that is for the registry alone.
    pub(super) fn is_registry(self) -> bool {
        match self {
            Need::Open | Need::Login => true,
            Need::Roles(needed) => needed.contains(&UserRole::Cluster),
        }
    }

    /// The roles that may, for messages.
    pub(super) fn roles(self) -> Vec<UserRole> {
        match self {
            Need::Open | Need::Login => UserRole::ALL.to_vec(),
            Need::Roles(needed) => {
                [UserRole::Admin, UserRole::SuperUser].into_iter().chain(needed.iter().copied()).collect()
            }
        }
    }
}

/// A method, and who may use it.
type Verb = (Method, Need);

/// One path and what it answers to. A segment `{…}` stands for any one segment.
pub(super) struct Route {
    pub(super) path: &'static str,
    pub(super) verbs: &'static [Verb],
    /// Whose words refusals are in.
    pub(super) interface: Interface,
}

const fn route(path: &'static str, verbs: &'static [Verb]) -> Route {
    Route { path, verbs, interface: Interface::Cluster }
}

const fn delta(path: &'static str, verbs: &'static [Verb]) -> Route {
    Route { path, verbs, interface: Interface::Delta }
}

const RUN_IMPORT: &[Verb] = &[(Method::POST, IMPORT)];
const SEE_IMPORT: &[Verb] = &[(Method::GET, IMPORT), (Method::HEAD, IMPORT)];

const fn registry(path: &'static str, verbs: &'static [Verb]) -> Route {
    Route { path, verbs, interface: Interface::Registry }
}

const fn replication(path: &'static str, verbs: &'static [Verb]) -> Route {
    Route { path, verbs, interface: Interface::Replication }
}

const READ: &[Verb] = &[(Method::GET, READER), (Method::HEAD, READER)];
const OPEN: &[Verb] = &[(Method::GET, Need::Open), (Method::HEAD, Need::Open)];
const PROBE: &[Verb] =
    &[(Method::GET, Need::Open), (Method::HEAD, Need::Open), (Method::OPTIONS, Need::Open)];
const COPY: &[Verb] = &[(Method::GET, FOLLOWER), (Method::HEAD, FOLLOWER)];
const READ_AND_POST: &[Verb] = &[(Method::GET, READER), (Method::HEAD, READER), (Method::POST, ADMIN)];

/// Of the replication interface: there is no HEAD, as reading a dump goes on in it.
const LOGGER_READ: &[Verb] = &[(Method::GET, LOG_READER)];
const LOGGER_CONFIG: &[Verb] = &[(Method::GET, LOG_READER), (Method::PUT, ADMIN)];
const LOGGER_CHANGE: &[Verb] = &[(Method::PUT, ADMIN)];
const BEGIN_BATCH: &[Verb] = &[(Method::POST, LOG_READER)];
const CHANGE_BATCH: &[Verb] = &[(Method::PUT, LOG_READER), (Method::DELETE, LOG_READER)];
/// Says where the remote is and who logs in there.
const APPLIER_CONFIG: &[Verb] = &[(Method::GET, REPLICATION), (Method::PUT, ADMIN)];
const APPLIER_STATE: &[Verb] = &[(Method::GET, LOG_READER), (Method::DELETE, ADMIN)];
/// Replaces what is in tables here.
const COPY_HERE: &[Verb] = &[(Method::PUT, REPLICATION)];
const LOG_IN: &[Verb] = &[(Method::POST, Need::Open)];

pub(super) const ROUTES: &[Route] = &[
    route("/is-leader", PROBE),
    // What load balancers ask; and the operations interface, whose users log in in its own words.
    Route {
        path: "/",
        verbs: &[
            (Method::GET, Need::Open),
            (Method::HEAD, Need::Open),
            (Method::OPTIONS, Need::Open),
            (Method::POST, ADMIN),
        ],
        interface: Interface::Operations,
    },
    route("/primary", PROBE),
    route("/master", PROBE),
    route("/read-write", PROBE),
    route("/leader-check", PROBE),
    route("/replica", PROBE),
    route("/read-only", PROBE),
    route("/synchronous", PROBE),
    route("/sync", PROBE),
    route("/quorum", PROBE),
    route("/asynchronous", PROBE),
    route("/async", PROBE),
    route("/health", PROBE),
    route("/liveness", PROBE),
    route("/readiness", PROBE),
    route("/map", READ),
    route("/info", READ),
    route("/config", READ_AND_POST),
    route(
        "/db-config",
        &[(Method::GET, READER), (Method::HEAD, READER), (Method::PATCH, ADMIN), (Method::POST, ADMIN)],
    ),
    route("/leader", READ_AND_POST),
    route("/node", READ_AND_POST),
    route(
        "/node/{node}",
        &[(Method::GET, READER), (Method::HEAD, READER), (Method::PATCH, ADMIN), (Method::DELETE, ADMIN)],
    ),
    route("/node-down/{node}", &[(Method::POST, ADMIN)]),
    route("/sql/readonly", READ),
    route("/channels", READ_AND_POST),
    route("/channels/{channel}", &[(Method::GET, READER), (Method::HEAD, READER), (Method::DELETE, ADMIN)]),
    route("/channels/{channel}/changes", READ),
    route("/channels/{channel}/stream", READ),
    route("/channels/{channel}/schemas", READ),
    route("/channels/{channel}/sequences", COPY),
    route("/channels/{channel}/dump", COPY),
    route("/channels/{channel}/copies", &[(Method::POST, FOLLOWER)]),
    route("/channels/{channel}/copies/{copy}", &[(Method::PUT, FOLLOWER), (Method::DELETE, FOLLOWER)]),
    route("/channels/{channel}/copies/{copy}/{table}", COPY),
    route("/channels/{channel}/tables", READ_AND_POST),
    route("/channels/{channel}/tables/{table}", &[(Method::DELETE, ADMIN)]),
    route("/channels/{channel}/prune", &[(Method::POST, ADMIN)]),
    route("/channels/{channel}/purge", &[(Method::POST, ADMIN)]),
    route("/channels/{channel}/flush", &[(Method::POST, ADMIN)]),
    route("/channels/{channel}/imports", &[(Method::POST, ADMIN)]),
    route("/channels/{channel}/cut", &[(Method::POST, FOLLOWER)]),
    route(
        "/channels/{channel}/followers",
        &[(Method::GET, READER), (Method::HEAD, READER), (Method::POST, FOLLOWER)],
    ),
    route("/channels/{channel}/followers/{follower}", &[(Method::PUT, FOLLOWER), (Method::DELETE, FOLLOWER)]),
    route("/subscriptions", READ_AND_POST),
    route(
        "/subscriptions/{name}",
        &[(Method::GET, READER), (Method::HEAD, READER), (Method::PATCH, ADMIN), (Method::DELETE, ADMIN)],
    ),
    route("/subscriptions/{name}/tables", READ),
    route("/subscriptions/{name}/tables/{table}/resume", &[(Method::POST, ADMIN)]),
    route("/subscriptions/{name}/tables/{table}", &[(Method::PATCH, ADMIN)]),
    route("/subscriptions/{name}/conflicts", READ),
    route("/subscriptions/{name}/rejected", READ),
    route("/subscriptions/{name}/rejected/{change}", &[(Method::DELETE, ADMIN)]),
    route("/subscriptions/{name}/rejected/{change}/retry", &[(Method::POST, ADMIN)]),
    route("/subscriptions/{name}/sequences", &[(Method::POST, ADMIN)]),
    route("/publications", READ_AND_POST),
    route(
        "/publications/{name}",
        &[(Method::GET, READER), (Method::HEAD, READER), (Method::PATCH, ADMIN), (Method::DELETE, ADMIN)],
    ),
    route("/users", &[(Method::GET, ADMIN), (Method::HEAD, ADMIN), (Method::POST, ADMIN)]),
    route(
        "/users/{user}",
        &[(Method::GET, ADMIN), (Method::HEAD, ADMIN), (Method::PATCH, ADMIN), (Method::DELETE, ADMIN)],
    ),
    route("/users/{user}/tokens", &[(Method::POST, ADMIN)]),
    route("/users/{user}/tokens/{token}", &[(Method::DELETE, ADMIN)]),
    route("/events", READ),
    route("/rpc", READ),
    route("/metrics", READ),
    registry(
        "/itResources",
        &[(Method::GET, REGISTERED), (Method::HEAD, REGISTERED), (Method::POST, REGISTRY)],
    ),
    registry("/itResources/{id}", &[(Method::GET, REGISTERED), (Method::HEAD, REGISTERED)]),
    registry("/itResources/{id}/servers/{server}", &[(Method::DELETE, REGISTRY)]),
    registry("/cluster/status", &[(Method::GET, REGISTERED), (Method::HEAD, REGISTERED)]),
    registry("/cluster/token", &[(Method::POST, Need::Open)]),
    registry("/cluster/request", &[(Method::POST, ANY_ROLE)]),
    route("/openapi.yaml", OPEN),
    route("/dashboard", OPEN),
    // The delta interface, twice, and where its clients log in.
    delta("/oauth/token", LOG_IN),
    delta("/fact-finder/oauth/token", LOG_IN),
    delta("/rest/v5/cluster/database/sync/full", RUN_IMPORT),
    delta("/rest/v5/cluster/reset/config/version/counters", &[(Method::POST, COUNTERS)]),
    delta("/rest/v5/cluster/{channel}/database/prune", RUN_IMPORT),
    delta("/rest/v5/cluster/{channel}/database/sync", RUN_IMPORT),
    delta("/rest/v5/cluster/{channel}/database/state", SEE_IMPORT),
    delta("/rest/v5/cluster/{channel}/import/state", SEE_IMPORT),
    delta("/rest/v5/cluster/{channel}/state", SEE_IMPORT),
    delta("/fact-finder/rest/v5/cluster/database/sync/full", RUN_IMPORT),
    delta("/fact-finder/rest/v5/cluster/reset/config/version/counters", &[(Method::POST, COUNTERS)]),
    delta("/fact-finder/rest/v5/cluster/{channel}/database/prune", RUN_IMPORT),
    delta("/fact-finder/rest/v5/cluster/{channel}/database/sync", RUN_IMPORT),
    delta("/fact-finder/rest/v5/cluster/{channel}/database/state", SEE_IMPORT),
    delta("/fact-finder/rest/v5/cluster/{channel}/import/state", SEE_IMPORT),
    delta("/fact-finder/rest/v5/cluster/{channel}/state", SEE_IMPORT),
    // The replication interface, with and without the name of a database.
    replication("/_api/version", LOGGER_READ),
    replication("/_api/collection", LOGGER_READ),
    replication("/_api/replication/server-id", LOGGER_READ),
    replication("/_api/replication/logger-state", LOGGER_READ),
    replication("/_api/replication/logger-first-tick", LOGGER_READ),
    replication("/_api/replication/logger-tick-ranges", LOGGER_READ),
    replication("/_api/replication/logger-config", LOGGER_CONFIG),
    replication("/_api/replication/logger-start", LOGGER_CHANGE),
    replication("/_api/replication/logger-stop", LOGGER_CHANGE),
    replication("/_api/replication/logger-follow", LOGGER_READ),
    replication("/_api/replication/inventory", LOGGER_READ),
    replication("/_api/replication/clusterInventory", LOGGER_READ),
    replication("/_api/replication/batch", BEGIN_BATCH),
    replication("/_api/replication/batch/{batch}", CHANGE_BATCH),
    replication("/_api/replication/dump", LOGGER_READ),
    replication("/_api/replication/applier-config", APPLIER_CONFIG),
    replication("/_api/replication/applier-state", APPLIER_STATE),
    replication("/_api/replication/applier-state-all", LOGGER_READ),
    replication("/_api/replication/applier-start", LOGGER_CHANGE),
    replication("/_api/replication/applier-stop", LOGGER_CHANGE),
    replication("/_api/replication/sync", COPY_HERE),
    replication("/_api/replication/make-follower", LOGGER_CHANGE),
    replication("/_api/replication/make-slave", LOGGER_CHANGE),
    replication("/_api/wal/range", LOGGER_READ),
    replication("/_api/wal/lastTick", LOGGER_READ),
    replication("/_api/wal/tail", LOGGER_READ),
    replication("/_admin/wal/flush", LOGGER_CHANGE),
    replication("/_admin/wal/properties", LOGGER_CONFIG),
    replication("/_admin/wal/transactions", LOGGER_READ),
    replication("/_open/auth", LOG_IN),
    replication("/_api/replication/restore-collection", LOGGER_CHANGE),
    replication("/_api/replication/restore-indexes", LOGGER_CHANGE),
    replication("/_api/replication/restore-data", LOGGER_CHANGE),
    replication("/_db/{database}/_api/replication/restore-collection", LOGGER_CHANGE),
    replication("/_db/{database}/_api/replication/restore-indexes", LOGGER_CHANGE),
    replication("/_db/{database}/_api/replication/restore-data", LOGGER_CHANGE),
    replication("/_db/{database}/_api/version", LOGGER_READ),
    replication("/_db/{database}/_api/collection", LOGGER_READ),
    replication("/_db/{database}/_api/replication/server-id", LOGGER_READ),
    replication("/_db/{database}/_api/replication/logger-state", LOGGER_READ),
    replication("/_db/{database}/_api/replication/logger-first-tick", LOGGER_READ),
    replication("/_db/{database}/_api/replication/logger-tick-ranges", LOGGER_READ),
    replication("/_db/{database}/_api/replication/logger-config", LOGGER_CONFIG),
    replication("/_db/{database}/_api/replication/logger-start", LOGGER_CHANGE),
    replication("/_db/{database}/_api/replication/logger-stop", LOGGER_CHANGE),
    replication("/_db/{database}/_api/replication/logger-follow", LOGGER_READ),
    replication("/_db/{database}/_api/replication/inventory", LOGGER_READ),
    replication("/_db/{database}/_api/replication/clusterInventory", LOGGER_READ),
    replication("/_db/{database}/_api/replication/batch", BEGIN_BATCH),
    replication("/_db/{database}/_api/replication/batch/{batch}", CHANGE_BATCH),
    replication("/_db/{database}/_api/replication/dump", LOGGER_READ),
    replication("/_db/{database}/_api/replication/applier-config", APPLIER_CONFIG),
    replication("/_db/{database}/_api/replication/applier-state", APPLIER_STATE),
    replication("/_db/{database}/_api/replication/applier-state-all", LOGGER_READ),
    replication("/_db/{database}/_api/replication/applier-start", LOGGER_CHANGE),
    replication("/_db/{database}/_api/replication/applier-stop", LOGGER_CHANGE),
    replication("/_db/{database}/_api/replication/sync", COPY_HERE),
    replication("/_db/{database}/_api/replication/make-follower", LOGGER_CHANGE),
    replication("/_db/{database}/_api/replication/make-slave", LOGGER_CHANGE),
    replication("/_db/{database}/_api/wal/range", LOGGER_READ),
    replication("/_db/{database}/_api/wal/lastTick", LOGGER_READ),
    replication("/_db/{database}/_api/wal/tail", LOGGER_READ),
    replication("/_db/{database}/_admin/wal/flush", LOGGER_CHANGE),
    replication("/_db/{database}/_admin/wal/properties", LOGGER_CONFIG),
    replication("/_db/{database}/_admin/wal/transactions", LOGGER_READ),
    replication("/_db/{database}/_open/auth", LOG_IN),
];

/// Paths that belong to other interfaces, whatever comes after them: who is not let in there is told so in that
/// interface's words. What is served there is a route above; the rest is unknown to those who are let in.
struct Area {
    path: &'static str,
    need: Need,
    interface: Interface,
}

const fn area(path: &'static str, need: Need, interface: Interface) -> Area {
    Area { path, need, interface }
}

/// The first that fits counts.
const AREAS: &[Area] = &[
    area("/rest/v5/cluster/reset/config", COUNTERS, Interface::Delta),
    area("/fact-finder/rest/v5/cluster/reset/config", COUNTERS, Interface::Delta),
    area("/rest/v5", IMPORT, Interface::Delta),
    area("/fact-finder", IMPORT, Interface::Delta),
    area("/_api", LOG_READER, Interface::Replication),
    area("/_db", LOG_READER, Interface::Replication),
    area("/_admin", LOG_READER, Interface::Replication),
    area("/_open", LOG_READER, Interface::Replication),
    area("/itResources", REGISTRY, Interface::Registry),
    area("/cluster", REGISTRY, Interface::Registry),
];

impl Route {
    /// The route of this path, whatever the method. A slash at the end makes no difference.
    pub(super) fn find(path: &str) -> Option<&'static Route> {
        ROUTES.iter().find(|route| route.matches(path))
    }

    pub(super) fn methods(&self) -> impl Iterator<Item = &'static Method> {
        self.verbs.iter().map(|(method, _)| method)
    }

    fn matches(&self, path: &str) -> bool {
        let path = path.strip_suffix('/').unwrap_or(path);
        let pattern = self.path.strip_suffix('/').unwrap_or(self.path);
        let (mut segments, mut patterns) = (path.split('/'), pattern.split('/'));
        loop {
            match (segments.next(), patterns.next()) {
                (None, None) => return true,
                (Some(segment), Some(pattern)) if pattern.starts_with('{') && !segment.is_empty() => {}
                (Some(segment), Some(pattern)) if segment == pattern => {}
                _ => return false,
            }
        }
    }
}

/// What a request needs.
pub(super) struct Rule {
    pub(super) need: Need,
    /// In whose words it is refused.
    pub(super) interface: Interface,
    /// There is a route for it. Nothing else gets as far as the routes.
    pub(super) served: bool,
}

/// The rule for a request; there is one for everything.
pub(super) fn rule(method: &Method, path: &str) -> Rule {
    let unserved = |need, interface| Rule { need, interface, served: false };
    if let Some(route) = Route::find(path) {
        if let Some((_, need)) = route.verbs.iter().find(|(known, _)| known == method) {
            return Rule { need: *need, interface: route.interface, served: true };
        }
        // A method that the path does not know. Who may look at an open path may know that, too.
        let open = route.verbs.iter().any(|(_, need)| *need == Need::Open);
        return unserved(if open { Need::Open } else { Need::Login }, route.interface);
    }
    let below = |area: &&Area| {
        path.strip_prefix(area.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match AREAS.iter().find(below) {
        Some(area) => unserved(area.need, area.interface),
        None => unserved(Need::Login, Interface::Cluster),
    }
}
