//! The upstreams of each route: which of them can be compared, and which get requests although they have failed.

/// The upstreams of each route, by their URLs.
#[derive(Debug, Default)]
pub(crate) struct Routing(Vec<Vec<String>>);

impl Routing {
    pub(crate) fn new(routes: Vec<Vec<String>>) -> Self {
        Self(routes)
    }

    /// Returns the other upstreams of exactly the same routes: they get the same kinds of requests.
    pub(super) fn equals_of(&self, upstream: &str) -> Vec<&str> {
        let mut equals: Vec<&str> = Vec::new();
        for other in self.0.iter().flatten() {
            let differs = self.0.iter().any(|route| has(route, other) != has(route, upstream));
            if other != upstream && !differs && !equals.contains(&other.as_str()) {
                equals.push(other);
            }
        }
        equals
    }

    /// Returns whether all upstreams of a route have failed, one of which is this one: then all get requests nevertheless.
    pub(super) fn gets_requests(&self, failed: &str, has_failed: impl Fn(&str) -> bool) -> bool {
        let mut routes = self.0.iter().filter(|route| has(route, failed));
        routes.any(|route| route.iter().all(|upstream| has_failed(upstream)))
    }
}

fn has(route: &[String], upstream: &str) -> bool {
    route.iter().any(|other| other == upstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_upstreams_of_the_same_routes_are_equal() {
        let routes = [&["a", "b", "c", "d"][..], &["c", "d"], &["e"]];
        let route = |route: &[&str]| route.iter().copied().map(str::to_owned).collect();
        let routing = Routing::new(routes.into_iter().map(route).collect());
        for (upstream, equals) in
            [("a", &["b"][..]), ("b", &["a"]), ("c", &["d"]), ("e", &[]), ("unknown", &[])]
        {
            assert_eq!(routing.equals_of(upstream), equals, "{upstream}");
        }
    }
}
