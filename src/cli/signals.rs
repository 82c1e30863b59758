//! The signals that the process handles.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The handlers of all signals.
pub(super) struct Signals {
    pub(super) terminate: TerminateSignals,
    hangup: Signal,
}

/// The handlers of SIGTERM and SIGINT.
pub(super) struct TerminateSignals {
    terminate: Signal,
    interrupt: Signal,
}

/// A request by signal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalRequest {
    /// SIGTERM or SIGINT.
    Terminate,
    /// SIGHUP.
    Reload,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { terminate: TerminateSignals::new()?, hangup: signal(SignalKind::hangup())? })
    }

    pub(super) async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            // A pending SIGTERM takes precedence over a reload.
            biased;
            () = self.terminate.received() => SignalRequest::Terminate,
            _ = self.hangup.recv() => SignalRequest::Reload,
        }
    }
}

impl TerminateSignals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
