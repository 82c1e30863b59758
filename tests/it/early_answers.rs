//! Early responses, to clients that read them only after they have sent the whole request.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::raw::{RawUpstream, read_until};
use crate::support::{Authority, Cloakroom, Flaw, PATIENCE, Upstream, curl, needs};

/// Uploads 8 MiB ten times with Python's client, which reads nothing until all is sent. Returns the statuses.
const UPLOADS: &str = r#"
import http.client, ssl, sys
scheme, port, path, framing = sys.argv[1:]
piece = b"x" * 65536
for _ in range(10):
    if scheme == "https":
        insecure = ssl.create_default_context()
        insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", int(port), timeout=20, context=insecure)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    try:
        if framing == "chunked":
            connection.request("POST", path, body=(piece for _ in range(128)), encode_chunked=True)
        else:
            connection.request("POST", path, body=piece * 128)
        print(connection.getresponse().status, flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
    connection.close()
"#;

async fn uploads(scheme: &str, port: u16, path: &str, framing: &str) -> Vec<String> {
    let port = port.to_string();
    let mut python = Command::new("python3");
    python.args(["-c", UPLOADS, scheme, &port, path, framing]).kill_on_drop(true);
    let output = timeout(PATIENCE * 3, python.output()).await.expect("Python ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A site that responds after the head and closes; unread bytes reset the connection.
async fn hasty_site() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                read_until(&mut connection, "\r\n\r\n").await;
                let answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\
                    Connection: close\r\n\r\nno!";
                let _ = connection.write_all(answer).await;
                let _ = connection.read(&mut [0; 1]).await;
            });
        }
    });
    address
}

fn routes(hasty: SocketAddr) -> String {
    format!(
        "[[route]]\nupstream = \"UPSTREAM\"\nmax_body = \"1MiB\"\n\
         [[route]]\npath = \"/hasty\"\nupstream = \"http://{hasty}\"\n"
    )
}

#[tokio::test]
async fn early_response_survives_the_upload() {
    needs!("python3");
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, &routes(hasty_site().await)).await;
    for path in ["/", "/hasty"] {
        for framing in ["length", "chunked"] {
            let got = uploads("http", proxy.public().port(), path, framing).await;
            assert_eq!(got, vec!["413"; 10], "{path} {framing}");
        }
    }
}

#[tokio::test]
async fn early_response_survives_the_upload_over_tls() {
    needs!("python3");
    let upstream = Upstream::start();
    let authority = Authority::new();
    let identity = authority.server(Flaw::None);
    let listen = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n",
        identity.certificate.display(),
        identity.key.display()
    );
    let toml = format!("{listen}{}", routes(hasty_site().await));
    let proxy = Cloakroom::with(&upstream, &toml).await;
    let port = proxy.public().port();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body");
    std::fs::write(&file, vec![b'x'; 8 << 20]).unwrap();
    for path in ["/", "/hasty"] {
        assert_eq!(uploads("https", port, path, "length").await, vec!["413"; 10], "{path}");
        for (version, flag) in [("1.1", "--http1.1"), ("2", "--http2")] {
            let url = format!("https://127.0.0.1:{port}{path}");
            let data = format!("@{}", file.display());
            let sends = ["--data-binary", data.as_str(), "-H", "Expect:"];
            let answer = curl([&["-k", flag, url.as_str()][..], &sends].concat()).await;
            assert_eq!((answer.version.as_str(), answer.status), (version, 413), "{path}");
        }
    }
}

/// The rest of an upload that the site does not read does not destroy its response.
#[tokio::test]
async fn response_before_a_reset_is_read() {
    let upstream = RawUpstream::start().await;
    let proxy = Cloakroom::for_site(upstream.address, "", "").await;
    for _ in 0..50 {
        let mut client = TcpStream::connect(proxy.public()).await.unwrap();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
        client.write_all(head).await.unwrap();
        let (mut site, _) = upstream.head().await;
        let upload = async { client.write_all(&vec![b'x'; 500_000]).await };
        let answer = async {
            // Unread bytes cause a reset.
            site.readable().await.unwrap();
            let head = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!";
            site.write_all(head).await.unwrap();
            drop(site);
        };
        let (sent, ()) = tokio::join!(upload, answer);
        sent.unwrap();
        let got = read_until(&mut client, "no!").await;
        assert!(got.starts_with("HTTP/1.1 413"), "{got}");
    }
}
