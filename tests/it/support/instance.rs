//! The program as a process, with a configuration for one test, on free ports.

use tempfile::TempDir;

use super::{Browser, KEY, Program, Serving, Upstream, curl};

/// A running program and its state directory.
pub struct Instance {
    pub program: Program,
    pub serving: Serving,
    directory: TempDir,
}

impl Instance {
    /// Starts a program for `upstream` with these lines in its `[store]`, and waits until it
    /// serves.
    pub async fn start(upstream: &Upstream, store: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cloakroom.toml");
        let toml = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[session]\nkeys = [\"{KEY}\"]\n\
             [store]\n{store}\n[[route]]\nupstream = \"{}\"\n",
            upstream.url()
        );
        std::fs::write(&file, toml).unwrap();
        let program = Program::start(&file);
        let serving = program.serving().await;
        Self { program, serving, directory }
    }

    /// Returns a browser that visits it.
    pub fn browser(&self) -> Browser {
        Browser::to(self.serving.public)
    }

    /// Returns the status of `/ready`.
    pub async fn readiness(&self) -> u16 {
        curl([format!("http://{}/ready", self.serving.admin)]).await.status
    }
}
