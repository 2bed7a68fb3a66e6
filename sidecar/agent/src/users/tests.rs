//! Changes of users one after the other, and what is refused.

use super::*;
use crate::cluster::{Cluster, describe};
use crate::entry::Entry;
use crate::member::{Member, Role};
use crate::settings::Settings;

fn add(user: &str, roles: &[UserRole], password: bool) -> UserChange {
    let password = password.then(|| Secret::new(format!("$argon2id$hash-of-{user}")));
    UserChange::Add { user: user.to_owned(), roles: roles.iter().copied().collect(), password }
}

fn token(user: &str, id: &str) -> UserChange {
    let token = Token { hash: Secret::new(format!("hash-of-{id}")), created: 7 };
    UserChange::AddToken { user: user.to_owned(), id: id.to_owned(), token }
}

fn remove(user: &str, last: bool) -> UserChange {
    UserChange::Remove { user: user.to_owned(), last }
}

fn with(changes: &[UserChange]) -> Users {
    let mut users = Users::default();
    for (index, change) in (1..).zip(changes) {
        users.apply(index, change).unwrap();
    }
    users
}

#[test]
fn the_first_user_is_an_admin_who_can_log_in() {
    for change in [add("bob", &[UserRole::Reader], true), add("root", &[UserRole::Admin], false)] {
        let mut users = Users::default();
        assert_eq!(users.apply(1, &change), Err(UserError::FirstIsNoAdmin));
        assert_eq!(users, Users::default(), "nothing was changed");
    }
    for mighty in [UserRole::Admin, UserRole::SuperUser] {
        assert!(with(&[add("root", &[mighty], true)]).get("root").is_some());
    }
}

#[test]
fn the_last_admin_is_kept_unless_it_is_said_twice() {
    let admin = add("root", &[UserRole::Admin], true);
    let reader = add("bob", &[UserRole::Reader], true);
    let mut users = with(&[admin.clone(), reader]);
    let demoted =
        UserChange::Set { user: "root".to_owned(), roles: Some([UserRole::Reader].into()), password: None };
    let kept = Err(UserError::LastAdmin("root".to_owned()));
    assert_eq!(users.apply(3, &remove("root", false)), kept);
    assert_eq!(users.apply(3, &demoted), kept);
    assert_eq!(users.changed_at(), 2);
    users.apply(3, &add("other", &[UserRole::SuperUser], false)).unwrap();
    assert_eq!(users.apply(4, &remove("root", false)), kept, "the other one has nothing to log in with");
    users.apply(4, &token("other", "t1")).unwrap();
    users.apply(5, &remove("root", false)).unwrap();
    let last_token = UserChange::RemoveToken { user: "other".to_owned(), id: "t1".to_owned() };
    assert_eq!(users.apply(6, &last_token), Err(UserError::LastAdmin("other".to_owned())));
    users.apply(6, &remove("other", true)).unwrap();
    users.apply(7, &remove("bob", false)).expect("where no admin is, none can be the last one");
    assert!(users.is_empty());
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let before = with(&[add("root", &[UserRole::Admin], true), token("root", "t1")]);
    let set = |user: &str, roles: &[UserRole]| UserChange::Set {
        user: user.to_owned(),
        roles: Some(roles.iter().copied().collect()),
        password: None,
    };
    let no_token = UserChange::RemoveToken { user: "root".to_owned(), id: "t2".to_owned() };
    let unknown = || UserError::Unknown("eve".to_owned());
    for (change, error) in [
        (add("root", &[UserRole::Reader], true), UserError::Exists("root".to_owned())),
        (add("bob", &[], true), UserError::NoRole("bob".to_owned())),
        (set("root", &[]), UserError::NoRole("root".to_owned())),
        (set("eve", &[UserRole::Reader]), unknown()),
        (remove("eve", true), unknown()),
        (token("eve", "t"), unknown()),
        (no_token, UserError::UnknownToken { user: "root".to_owned(), id: "t2".to_owned() }),
    ] {
        let mut users = before.clone();
        assert_eq!(users.apply(9, &change), Err(error));
        assert_eq!(users, before);
    }
    for bad in ["", ".bob", "a b", "a:b", "a/b", "ä", "a\n", &"a".repeat(64)] {
        let refused = before.clone().apply(9, &add(bad, &[UserRole::Reader], true));
        assert_eq!(refused, Err(UserError::BadName(bad.to_owned())));
    }
    for good in ["a", "7", "bob@example.org", "a-b_c.d", &"a".repeat(63)] {
        before.clone().apply(9, &add(good, &[UserRole::Reader], true)).unwrap();
    }
}

#[test]
fn there_are_bounds() {
    let mut users = with(&[add("root", &[UserRole::Admin], true)]);
    for i in 0..TOKENS_MAX {
        users.apply(2, &token("root", &i.to_string())).unwrap();
    }
    assert_eq!(users.apply(3, &token("root", "x")), Err(UserError::TooManyTokens("root".to_owned())));
    for i in 1..USERS_MAX {
        users.by_name.insert(format!("u{i}"), users.by_name["root"].clone());
    }
    assert_eq!(users.apply(3, &add("one-more", &[UserRole::Reader], true)), Err(UserError::TooManyUsers));
}

#[test]
fn roles_are_read_by_their_names() {
    for role in UserRole::ALL {
        assert_eq!(UserRole::parse(role.as_str()), Ok(role));
        assert_eq!(serde_json::to_value(role).unwrap(), role.as_str(), "one name everywhere");
    }
    let error = UserRole::parse("root").unwrap_err();
    assert!(error.contains("admin") && error.contains("replication_sync"), "{error}");
}

/// What the log keeps for people and for the database has no hash in it, however it is looked at; the state has them.
#[test]
fn hashes_are_in_the_state_and_nowhere_else() {
    let first = Member {
        id: 1,
        ip: [127, 0, 0, 1].into(),
        db_port: 5001,
        api_port: 8001,
        role: Role::Node,
        down: false,
        auto_upgrade: false,
        identity: Some(1),
    };
    let mut cluster = Cluster::new("c".to_owned(), 1, first, Settings::default());
    let password =
        UserChange::Set { user: "root".to_owned(), roles: None, password: Some(Secret::new("hash-of-more")) };
    let changes = [add("root", &[UserRole::Admin], true), password, token("root", "t1")];
    for (index, change) in (1..).zip(&changes) {
        let entry = Entry::User(change.clone());
        assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry, "nothing is lost on the way");
        assert!(!format!("{entry:?}").contains("hash-of"));
        cluster.apply(index, 1, &entry);
        let (kind, node, sentence) = describe(&entry).unwrap();
        assert!(node.is_none() && !format!("{kind}{sentence}").contains("hash-of"));
    }
    assert_eq!(cluster.users.get("root").unwrap().password.as_ref().unwrap().reveal(), "hash-of-more");
    assert_eq!(cluster.users.get("root").unwrap().tokens["t1"].hash.reveal(), "hash-of-t1");
    let log = serde_json::to_string(&cluster.log).unwrap();
    let records = cluster.records_after(1);
    let snapshot = cluster.records_after(0);
    let records: Vec<_> = records.iter().chain(&snapshot).map(|r| r.payload.to_string()).collect();
    assert!(log.contains("root") && records.len() == 3);
    for text in records.iter().chain([&log, &format!("{cluster:?}")]) {
        assert!(!text.contains("hash-of"), "{text}");
    }
    // A change that makes no sense any more is no event.
    cluster.apply(4, 1, &Entry::User(remove("eve", false)));
    assert_eq!((cluster.log.len(), cluster.applied_index), (3, 4));
    // The state comes back from a snapshot as it was.
    let again: Cluster = serde_json::from_str(&serde_json::to_string(&cluster).unwrap()).unwrap();
    assert_eq!(again, cluster);
    // One that an older version took has no users.
    let mut old = serde_json::to_value(&cluster).unwrap();
    old.as_object_mut().unwrap().remove("users");
    assert!(serde_json::from_value::<Cluster>(old).unwrap().users.is_empty());
}
