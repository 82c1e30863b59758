//! Problems of connections of clients: the file descriptors for them.

use super::super::rates::count;
use super::{Descriptors, Facts, Finding};
use crate::metrics::Samples;
use crate::net::descriptors;

impl Facts<'_> {
    pub(super) fn descriptors(&self, found: &mut Vec<Finding>) {
        let Descriptors { limit, connections, .. } = self.descriptors;
        for (listener, paused) in self.windows.now.by("accept_paused", "listener") {
            if paused > 0.0 {
                let since = self.metrics.accept_paused_since(listener);
                let since = since.map(|since| self.time(since));
                found.push(Finding::new("accept_paused", self.accept_paused(listener), since));
            }
        }
        // Each client connection may need another one to an upstream.
        if limit < connections.saturating_mul(2) {
            let detail = format!(
                "the limit of {limit} file descriptors is too low for limits.connections = {connections}; raise it \
                 (LimitNOFILE, ulimit -n)"
            );
            found.push(Finding::new("descriptor_limit_too_low", detail, None));
        }
    }

    fn accept_paused(&self, listener: &str) -> String {
        let Descriptors { limit, open, .. } = self.descriptors;
        let clients = count(self.windows.now.sum("connections_open"));
        let open = open.map_or_else(String::new, |open| format!("{open} are open, "));
        let silent = self.silent_clients(listener).unwrap_or_default();
        format!(
            "the listener {listener} accepts no connections, because the file descriptors for clients are used up: \
             {open}clients may use {} of {limit}; {clients} connections of clients are open{silent}",
            descriptors::for_clients(limit)
        )
    }

    /// Says so if most of the connections that ended lately were closed because a request did not arrive. Those that ended
    /// before clients held the descriptors do not count: there may have been many.
    fn silent_clients(&self, listener: &str) -> Option<String> {
        let windows = self.windows.only("listener", listener);
        let reason = "header_timeout";
        let silent = |samples: &Samples| samples.of("connections_aborted_total", "reason", reason);
        let ended =
            |samples: &Samples| samples.sum("connections_total") - samples.sum("connections_open");
        let (silent, ended) = (windows.recent_growth(silent), windows.recent_growth(ended));
        (silent > 0 && silent * 2 > ended).then(|| {
            format!(
                "; of {ended} that ended in the last seconds, {silent} sent no request in time ({reason}): clients hold \
                 connections without requests"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::Scene;
    use super::*;
    use crate::metrics::AbortReason;

    fn detail(scene: &Scene) -> String {
        let found = scene.find();
        let [Finding { problem: "accept_paused", detail, since: Some(_), .. }] = found.as_slice()
        else {
            panic!("{found:?}")
        };
        detail.clone()
    }

    #[test]
    fn clients_that_send_nothing_are_named() {
        let scene = Scene::new();
        let listener = scene.metrics.listener("127.0.0.1:80");
        let _paused = listener.accept_paused();
        // Visitors who were served before.
        (0..10).for_each(|_| drop(listener.connection_opened()));
        let mut samples = scene.metrics.samples();
        samples.at = samples.at.checked_sub(Duration::from_secs(15)).expect("uptime");
        scene.history.push(samples);
        let (_open, ended) = (listener.connection_opened(), listener.connection_opened());
        let ended = [ended, listener.connection_opened(), listener.connection_opened()];
        let full = "the listener 127.0.0.1:80 accepts no connections, because the file descriptors for clients are used up: \
             1100 are open, clients may use 1000 of 2000;";
        assert_eq!(detail(&scene), format!("{full} 4 connections of clients are open"));
        drop(ended);
        listener.connection_aborted(AbortReason::HeaderTimeout);
        listener.connection_aborted(AbortReason::Malformed);
        assert_eq!(detail(&scene), format!("{full} 1 connections of clients are open"));
        listener.connection_aborted(AbortReason::HeaderTimeout);
        assert_eq!(
            detail(&scene),
            format!(
                "{full} 1 connections of clients are open; of 3 that ended in the last seconds, 2 sent no request in \
                 time (header_timeout): clients hold connections without requests"
            )
        );
    }

    #[test]
    fn low_limit_of_descriptors_is_named() {
        let mut scene = Scene::new();
        scene.descriptors.limit = 1999;
        let found = scene.find();
        let [Finding { problem: "descriptor_limit_too_low", .. }] = found.as_slice() else {
            panic!("{found:?}")
        };
    }
}
