//! curl, a client that shares no code with the proxy.

use std::ffi::OsStr;

use tokio::process::Command;
use tokio::time::timeout;

use super::PATIENCE;

/// Exit code of curl and the response that it printed.
#[derive(Debug)]
pub struct CurlResponse {
    /// 0 if there was a response, 60 if the certificate is not trusted.
    pub exit: i32,
    /// "1.1" or "2".
    pub version: String,
    pub status: u16,
    /// Status line and header fields.
    pub head: String,
    pub body: String,
}

impl CurlResponse {
    /// Returns a header field of the response.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Runs curl with these arguments, including the URL.
pub async fn curl<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> CurlResponse {
    let mut command = Command::new("curl");
    command.args(["--silent", "--include", "--noproxy", "*"]);
    command.args(["--write-out", "\n%{http_version} %{http_code}"]).args(arguments);
    let output = timeout(PATIENCE, command.kill_on_drop(true).output());
    let output = output.await.expect("curl ends").expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let (response, summary) = text.rsplit_once('\n').expect("the line of --write-out");
    let (version, status) = summary.split_once(' ').expect("version and status");
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
    CurlResponse {
        exit: output.status.code().unwrap_or(-1),
        version: version.to_owned(),
        status: status.parse().expect("a status"),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}
