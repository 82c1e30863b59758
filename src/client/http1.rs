//! An HTTP/1.1 connection to an upstream. It carries one request at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;

use super::drive::{MAX_HEAD_BYTES, drive};
use super::error::{Error, ErrorKind};
use super::io::UpstreamIo;
use super::request_body::RequestBody;
use crate::net::socket::Socket;
use crate::tasks::Tasks;

/// Fields of a response's head, or of its trailers: far more than any site sends within [`MAX_HEAD_BYTES`].
///
/// hyper allocates two tables of this many 32-byte entries for each head. Above 128 KiB for both, the allocator returns
/// them to the system each time, which costs more than the request.
const MAX_FIELDS: usize = 2000;

/// An HTTP/1.1 connection. Dropping it aborts its request.
#[derive(Debug)]
pub(super) struct Http1Connection {
    sender: http1::SendRequest<RequestBody>,
    /// Set when a byte of the response arrives.
    received: Arc<AtomicBool>,
    /// Aborts the connection's task; `None` once an upgrade owns the connection.
    task: Option<AbortHandle>,
}

impl Http1Connection {
    /// Starts HTTP/1.1 on `socket`. When the drain begins, the connection's task calls `on_drain` once.
    pub(super) async fn start(
        socket: Socket,
        tasks: &Tasks,
        on_drain: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let received = Arc::new(AtomicBool::new(false));
        let io = UpstreamIo::new(socket, Arc::clone(&received));
        let (sender, connection) = http1::Builder::new()
            .max_header_size(MAX_HEAD_BYTES)
            .max_buf_size(MAX_HEAD_BYTES + 4096)
            .max_headers(MAX_FIELDS)
            // A proxy removes white space between a field name and its colon (RFC 9112, section 5.1).
            .allow_spaces_after_header_name_in_responses(true)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| Error::with(ErrorKind::Connect, error))?;
        let task = tasks.run(drive(connection.with_upgrades(), tasks.sibling(), on_drain));
        Ok(Self { sender, received, task: Some(task.abort_handle()) })
    }

    /// Sends a request. If nothing of it was written, the error contains it.
    pub(super) fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>
    + Send
    + use<> {
        self.received.store(false, Ordering::Relaxed);
        // Without the field, hyper would drop a body of unknown length of a GET or HEAD.
        if request.body().size_hint().exact().is_none() {
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(header::TRANSFER_ENCODING, chunked);
        }
        self.sender.try_send_request(request)
    }

    /// Returns whether the last request was written, its response was read, and the connection is open.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Returns whether a byte of the response to the last request has arrived.
    pub(super) fn has_received(&self) -> bool {
        self.received.load(Ordering::Relaxed)
    }

    /// Leaves the connection to the upgrade that its response has started.
    pub(super) fn release(mut self) {
        self.task = None;
    }
}

impl Drop for Http1Connection {
    fn drop(&mut self) {
        // hyper would send the rest of a request whose response has ended, for as long as the upstream reads it.
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
