//! The memory that the memory store accounts for, compared with the growth of the program.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::support::Program;
use crate::support::raw::exchange;

/// Bytes by which the rest of the program may grow or shrink between two readings: buffers, arenas of the allocator.
const REST_OF_PROGRAM: f64 = 2.0 * 1024.0 * 1024.0;

/// Sessions of one kind, which the site creates by header.
struct Shape {
    name: &'static str,
    patch: String,
    user_agent: usize,
    sessions: usize,
}

fn shapes() -> [Shape; 4] {
    let values = (0..40).map(|number| format!("\"key {number:02}\":\"{}\"", "x".repeat(24)));
    let values = values.collect::<Vec<_>>().join(",");
    let shape = |name, patch, user_agent, sessions| Shape { name, patch, user_agent, sessions };
    [
        shape("one small value", "{\"values\":{\"n\":1}}".to_owned(), 10, 25_000),
        shape("many values", format!("{{\"values\":{{{values}}}}}"), 10, 3_000),
        shape(
            "a large value",
            format!("{{\"values\":{{\"a\":\"{}\"}}}}", "x".repeat(5000)),
            10,
            2_500,
        ),
        shape(
            "a member's",
            "{\"principal\":\"a member\",\"values\":{\"n\":1}}".to_owned(),
            200,
            15_000,
        ),
    ]
}

/// Starts a site that responds to every request with this patch.
fn site(patch: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer =
        format!("HTTP/1.1 200 OK\r\nX-Session-Patch: {patch}\r\nContent-Length: 2\r\n\r\nok");
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            thread::spawn(move || {
                while read_heads(&connection, 1) {
                    (&connection).write_all(answer.as_bytes()).unwrap();
                }
            });
        }
    });
    address
}

/// Reads `count` heads, with bodies of two bytes or none. Returns `false` at the end.
fn read_heads(mut connection: &TcpStream, count: usize) -> bool {
    let (mut text, mut bytes) = (Vec::new(), vec![0; 65_536]);
    while text.windows(4).filter(|four| four == b"\r\n\r\n").count() < count {
        match connection.read(&mut bytes) {
            Ok(0) | Err(_) => return false,
            Ok(read) => text.extend_from_slice(&bytes[..read]),
        }
    }
    true
}

/// Creates sessions, each by a request without a cookie.
fn create_sessions(address: SocketAddr, user_agent: usize, sessions: usize) {
    const TOGETHER: usize = 8;
    let agent = "x".repeat(user_agent);
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: {agent}\r\n\r\n");
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_nodelay(true).unwrap();
    for _ in 0..sessions / TOGETHER {
        connection.write_all(request.repeat(TOGETHER).as_bytes()).unwrap();
        assert!(read_heads(&connection, TOGETHER));
    }
}

fn resident(id: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
}

async fn metric(admin: SocketAddr, name: &str) -> f64 {
    let ask = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    let text = exchange(admin, ask).await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().parse().unwrap()
}

#[tokio::test]
async fn memory_store_bytes_match_the_growth_of_the_program() {
    for Shape { name, patch, user_agent, sessions } in shapes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cloakroom.toml");
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n\
             [api]\naddress = \"127.0.0.1:0\"\nrequest_token_linger = \"1s\"\n\
             [session]\nrecord_client = true\n[store]\nurl = \"memory:\"\n[log]\naccess = false\n\
             [[route]]\nupstream = \"http://{}\"\nheader_exchange = true\n",
            site(&patch)
        );
        fs::write(&file, text).unwrap();
        // The allocator asks for pages of 2 MiB, and the kernel gives some at any time: each would count as growth.
        let program = Program::start_with_variable("MIMALLOC_ALLOW_THP", "0", &file);
        let serving = program.serving().await;
        let mut before = (0.0, 0.0);
        // The first tenth grows buffers and pools to their size.
        for sessions in [sessions / 10, sessions] {
            before = (
                resident(program.id()),
                metric(serving.admin, "cloakroom_memory_store_bytes ").await,
            );
            create_sessions(serving.public, user_agent, sessions);
        }
        let counted = metric(serving.admin, "cloakroom_memory_store_bytes ").await - before.1;
        let grown = resident(program.id()) - before.0;
        assert!(
            (grown - counted).abs() < 0.1 * counted + REST_OF_PROGRAM,
            "{name}: {counted} counted, {grown} grown"
        );
    }
}
