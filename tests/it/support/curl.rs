//! curl: a client that is not ours.

use std::ffi::OsStr;

use tokio::process::Command;
use tokio::time::timeout;

use super::PATIENCE;

/// What curl said.
#[derive(Debug)]
pub struct Curled {
    /// curl's own: 0 where it was answered, 60 where it does not believe the certificate.
    pub exit: i32,
    /// "1.1" or "2".
    pub version: String,
    pub status: u16,
    /// Status line and fields.
    pub head: String,
    pub body: String,
}

impl Curled {
    /// A field of the response.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Runs curl with these arguments, an URL among them.
pub async fn curl<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Curled {
    let mut command = Command::new("curl");
    command.args(["--silent", "--include", "--noproxy", "*"]);
    command.args(["--write-out", "\n%{http_version} %{http_code}"]).args(arguments);
    let output = timeout(PATIENCE, command.kill_on_drop(true).output());
    let output = output.await.expect("curl ends").expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let (answer, told) = text.rsplit_once('\n').expect("what was asked for");
    let (version, status) = told.split_once(' ').expect("version and status");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    Curled {
        exit: output.status.code().unwrap_or(-1),
        version: version.to_owned(),
        status: status.parse().expect("a status"),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}
