//! What `pgquorum follow` makes of nodes that cannot go on. The nodes are played: each says what a real one may say.

use pgquorum_tests::{Outcome, pgquorum};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A node that answers each stream with these lines.
struct Played {
    url: String,
    /// What streams began after.
    asked: Arc<Mutex<Vec<String>>>,
}

/// What comes after the lines.
#[derive(Clone, Copy)]
enum Then {
    Close,
    /// A heartbeat like this each quarter of a second.
    Beat(&'static str),
}

fn play(leads: bool, lines: &'static [&'static str], then: Then) -> Played {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let noted = Arc::clone(&noted);
            // Whoever went away is no failure of the node's.
            std::thread::spawn(move || drop(answer(stream, leads, lines, then, &noted)));
        }
    });
    Played { url, asked }
}

fn answer(
    mut stream: TcpStream,
    leads: bool,
    lines: &[&str],
    then: Then,
    noted: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut request, mut header) = (String::new(), String::new());
    reader.read_line(&mut request)?;
    while header.trim() != "" || header.is_empty() {
        header.clear();
        reader.read_line(&mut header)?;
    }
    let head = |status: &str, kind: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n")
    };
    let path = request.split(' ').nth(1).unwrap_or_default();
    let Some(after) = path.strip_prefix("/channels/shop/stream?after=") else {
        let status = if path == "/is-leader" && leads { "200 OK" } else { "404 Not Found" };
        return stream.write_all(format!("{}{{}}", head(status, "application/json")).as_bytes());
    };
    noted.lock().expect("the list").push(after.to_owned());
    stream.write_all(head("200 OK", "application/x-ndjson").as_bytes())?;
    for line in lines {
        stream.write_all(format!("{line}\n").as_bytes())?;
    }
    while let Then::Beat(line) = then {
        std::thread::sleep(Duration::from_millis(250));
        stream.write_all(format!("{line}\n").as_bytes())?;
    }
    Ok(())
}

fn follow(nodes: [&Played; 2], from: &str) -> Outcome {
    let urls = format!("{},{}", nodes[0].url, nodes[1].url);
    pgquorum(["follow", "shop", "--from", from, "--count", "1", "--url", &urls])
}

const CHANGE: &str = r#"{"type":"change","position":"5:3","transaction":"9","op":"insert","schema":"public","table":"t","new":{"id":1}}"#;

#[test]
fn another_node_may_hold_a_good_copy_of_what_the_leader_cannot_read() {
    let broken =
        r#"{"type":"error","position":"5:2","code":"record_broken","message":"row 7 cannot be read"}"#;
    let leader = play(true, Box::leak(Box::new([broken])), Then::Close);
    let other = play(false, &[CHANGE], Then::Close);
    let found = follow([&leader, &other], "5:2");
    assert_eq!(found.code, 0, "{}", found.said);
    assert_eq!(*other.asked.lock().expect("the list"), ["5%3A2"]);
}

#[test]
fn a_node_whose_database_says_nothing_is_left() {
    let beat = r#"{"type":"heartbeat","position":"5:2","end":null,"leader":1}"#;
    let hung = play(true, &[], Then::Beat(beat));
    let other = play(false, &[CHANGE], Then::Close);
    let begin = Instant::now();
    let found = follow([&hung, &other], "5:2");
    assert_eq!(found.code, 0, "{}", found.said);
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}
