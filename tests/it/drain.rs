//! The drain: what is in flight when the proxy is told to end still comes to its end.

use std::net::SocketAddr;

use bytes::Bytes;
use cloakroom::client::{self, Target};
use cloakroom::server::Tasks;
use http::Response;
use http::uri::PathAndQuery;
use serde_json::json;

use crate::support::{Browser, Cloakroom, PATIENCE, Script, Upstream};

#[tokio::test]
async fn a_request_in_flight_still_reaches_the_api_while_the_proxy_drains() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&cloakroom);
    let visit = Script::new().call("POST", "/values/visits/increment", "");
    browser.navigate("/", &visit).await;
    let slow = visit.wait_before("calls");
    let page = async {
        let page = browser.navigate("/", &slow).await;
        assert_eq!(page.last().json(), json!(2), "{:?}", page.last());
    };
    let (public, admin) = (cloakroom.public(), cloakroom.admin());
    let drain = async {
        upstream.arrived("calls", 1).await;
        let stopped = cloakroom.stop();
        let open = async {
            // The drain has begun as soon as nobody listens any more.
            while tokio::net::TcpStream::connect(public).await.is_ok() {
                tokio::task::yield_now().await;
            }
            let ready = get(admin, "/ready").await;
            assert_eq!(ready.status(), 503);
            assert_eq!(ready.body().as_ref(), b"draining\n");
            upstream.open("calls");
        };
        let (drained, ()) = tokio::join!(stopped, open);
        assert!(drained);
    };
    tokio::join!(page, drain);
}

async fn get(address: SocketAddr, path: &'static str) -> Response<Bytes> {
    let target: Target = format!("http://{address}").parse().unwrap();
    let path = PathAndQuery::from_static(path);
    client::get(&target, path, &Tasks::new(), 1 << 20, PATIENCE).await.unwrap()
}
