//! Logins without a network.

use super::*;
use pgquorum_agent::users::{UserChange, UserRole};
use std::time::Duration;
use warp::http::HeaderValue;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn users(changes: &[UserChange]) -> Users {
    let mut users = Users::default();
    for (index, change) in (1..).zip(changes) {
        users.apply(index, change).unwrap();
    }
    users
}

fn add(user: &str, role: UserRole, password: &str) -> UserChange {
    let password = Some(Secret::new(password::hash(password)));
    UserChange::Add { user: user.to_owned(), roles: [role].into(), password }
}

fn header(value: &str) -> HeaderMap {
    [(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())].into_iter().collect()
}

fn name(caller: Result<Caller, Denied>) -> Result<String, Denied> {
    caller.map(|caller| match caller {
        Caller::Anybody => "(anybody)".to_owned(),
        Caller::Key => "(key)".to_owned(),
        Caller::User { name, .. } => name,
    })
}

#[tokio::test]
async fn users_log_in_by_password_and_by_token() {
    let new = token::new();
    let users = users(&[
        add("root", UserRole::Admin, "correct horse"),
        UserChange::AddToken { user: "root".to_owned(), id: new.id.clone(), token: new.token.clone() },
    ]);
    let logins = Logins::new(vec!["the-configured-token".into(), cluster_key("s3cret").into()], false);
    let ask = async |value: &str| name(logins.admit(&users, &header(value), HERE).await);
    for (value, who) in [
        (basic("root", "correct horse"), "root"),
        (basic("root", "correct horse").replace("Basic", "basic "), "root"),
        (basic("root", "correct horse").trim_end_matches('=').to_owned(), "root"),
        (format!("Bearer {}", new.text), "root"),
        ("bearer the-configured-token".to_owned(), "(key)"),
        (format!("Bearer {}", cluster_key("s3cret")), "(key)"),
    ] {
        assert_eq!(ask(&value).await.as_deref(), Ok(who), "{value}");
    }
    let other = token::new();
    for value in [
        basic("root", "correct horsE"),
        basic("root", ""),
        basic("eve", "correct horse"),
        format!("Bearer {}", other.text),
        format!("Bearer pgq_{}_{}", new.id, "0".repeat(64)),
        format!("Bearer {}", new.token.hash.reveal()),
        format!("Bearer {}", cluster_key("another")),
        "Bearer".to_owned(),
        "Basic !!!".to_owned(),
        "Digest root".to_owned(),
    ] {
        assert_eq!(ask(&value).await, Err(Denied::Wrong), "{value}");
    }
    assert_eq!(name(logins.admit(&users, &HeaderMap::new(), HERE).await), Err(Denied::Missing));
    // Where there are no users and no token nobody is asked, whatever he shows.
    let (none, open) = (Users::default(), Logins::new(vec![], false));
    assert_eq!(name(open.admit(&none, &header("Bearer x"), HERE).await).as_deref(), Ok("(anybody)"));
    let closed = Logins::new(vec![], true);
    assert_eq!(name(closed.admit(&none, &HeaderMap::new(), HERE).await), Err(Denied::Missing));
}

#[tokio::test]
async fn a_login_by_password_is_hashed_once_and_ends_with_the_user() {
    let mut users =
        users(&[add("root", UserRole::Admin, "correct horse"), add("bob", UserRole::Reader, "12345678")]);
    let logins = Logins::new(vec![], false);
    let login = header(&basic("bob", "12345678"));
    let bob = logins.admit(&users, &login, HERE).await.unwrap();
    // All turns are taken: whatever needs one now would wait for ever.
    let turns = [logins.runs.turn().await.unwrap(), logins.runs.turn().await.unwrap()];
    let again = tokio::time::timeout(Duration::from_secs(5), logins.admit(&users, &login, HERE)).await;
    assert_eq!(name(again.expect("it was verified before")).as_deref(), Ok("bob"));
    drop(turns);
    assert!(bob.user(&users).is_some());
    let other = UserChange::Set {
        user: "bob".to_owned(),
        roles: None,
        password: Some(Secret::new(password::hash("12345678"))),
    };
    users.apply(3, &other).unwrap();
    assert!(bob.user(&users).is_none(), "the same password, set anew");
    assert_eq!(name(logins.admit(&users, &login, HERE).await).as_deref(), Ok("bob"));
    users.apply(4, &UserChange::Remove { user: "bob".to_owned(), last: false }).unwrap();
    assert!(bob.user(&users).is_none());
    assert_eq!(name(logins.admit(&users, &login, HERE).await), Err(Denied::Wrong));
}

#[tokio::test]
async fn whoever_guesses_must_wait_and_others_need_not() {
    let users = users(&[add("root", UserRole::Admin, "correct horse")]);
    let logins = Logins::new(vec![], false);
    let known = header(&basic("root", "correct horse"));
    assert!(logins.admit(&users, &known, HERE).await.is_ok());
    let mut denied = Vec::new();
    for i in 0..7 {
        let guess = header(&basic("root", &format!("guess {i}")));
        denied.push(logins.admit(&users, &guess, HERE).await.unwrap_err());
    }
    assert_eq!(denied[..5], [Denied::Wrong; 5]);
    assert!(matches!(denied[5..], [Denied::TooOften { seconds: 1 }, Denied::TooOften { .. }]), "{denied:?}");
    assert!(logins.admit(&users, &known, HERE).await.is_ok(), "whoever was right goes on");
    let elsewhere = "10.0.0.1".parse().unwrap();
    assert!(logins.admit(&users, &known, elsewhere).await.is_ok());
}

#[tokio::test]
async fn a_token_that_was_good_once_is_no_guess() {
    let users = users(&[add("root", UserRole::Admin, "correct horse")]);
    let logins = Logins::new(vec![], false);
    let hash = users.get("root").unwrap().password.clone().unwrap();
    let old = SystemTime::now() - Duration::from_secs(2 * 3600);
    let bearer = |token: &str| header(&format!("Bearer {token}"));
    let outdated = bearer(&logins.sessions.issue("root", &hash, old));
    for _ in 0..200 {
        assert_eq!(name(logins.admit(&users, &outdated, HERE).await), Err(Denied::Outdated));
    }
    // Else nothing more would be looked at from this address.
    let forged = bearer("a.b.c");
    assert_eq!(name(logins.admit(&users, &forged, HERE).await), Err(Denied::Wrong));
    let fresh = bearer(&logins.sessions.issue("root", &hash, SystemTime::now()));
    assert_eq!(name(logins.admit(&users, &fresh, HERE).await).as_deref(), Ok("root"));
}

#[test]
fn passwords_are_checked_and_hashed_with_a_salt() {
    for bad in ["", "1234567", "1234567\n", "tab\there!", &"x".repeat(257)] {
        let why = password::check(bad).unwrap_err();
        assert!(bad.is_empty() || !why.contains(bad), "{why}");
    }
    for good in ["12345678", "äöüäöüäö", "pass phrase with: colon", &"x".repeat(256)] {
        password::check(good).unwrap();
    }
    let (one, other) = (password::hash("12345678"), password::hash("12345678"));
    assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$") && one != other);
    assert!(password::verify("12345678", &one) && password::verify("12345678", &other));
    for (password, hash) in [("12345679", one.as_str()), ("12345678", ""), ("12345678", "12345678"), ("", "")]
    {
        assert!(!password::verify(password, hash));
    }
    let nobody = nobodys_hash();
    assert!(nobody.starts_with("$argon2id$") && nobody == nobodys_hash());
}

fn nobodys_hash() -> String {
    password::nobodys().reveal().to_owned()
}

#[test]
fn keys_differ_by_secret_and_tokens_by_chance() {
    assert_eq!(cluster_key("a").len(), 64);
    assert_ne!(cluster_key("a"), cluster_key("b"));
    let (one, other) = (token::new(), token::new());
    assert!(one.text.starts_with(&format!("pgq_{}_", one.id)) && one.text.len() == 4 + 12 + 1 + 64);
    assert!(one.text != other.text && one.id != other.id);
    assert!(!one.text.contains(one.token.hash.reveal()) && one.token.created > 1_600_000_000_000);
}
