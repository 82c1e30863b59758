//! The pages: paths, labels and titles.

/// A page, in the order of the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Visits,
    Parallel,
    Account,
    Values,
    Message,
    Lifetime,
    Cookie,
    Devices,
    Exchange,
    OwnSite,
}

impl Page {
    pub(super) const ALL: [Self; 10] = [
        Self::Visits,
        Self::Parallel,
        Self::Account,
        Self::Values,
        Self::Message,
        Self::Lifetime,
        Self::Cookie,
        Self::Devices,
        Self::Exchange,
        Self::OwnSite,
    ];

    /// Returns the page at a path.
    pub(super) fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|page| page.path() == path)
    }

    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Visits => "/",
            Self::Parallel => "/parallel",
            Self::Account => "/account",
            Self::Values => "/values",
            Self::Message => "/message",
            Self::Lifetime => "/lifetime",
            Self::Cookie => "/cookie",
            Self::Devices => "/devices",
            Self::Exchange => "/exchange",
            Self::OwnSite => "/own-site",
        }
    }

    /// Returns the name in the navigation.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Visits => "Visits",
            Self::Parallel => "20 at once",
            Self::Account => "Account",
            Self::Values => "Values",
            Self::Message => "Message",
            Self::Lifetime => "Lifetime",
            Self::Cookie => "Cookie",
            Self::Devices => "Devices",
            Self::Exchange => "Headers only",
            Self::OwnSite => "Your own site",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Visits => "Visits",
            Self::Parallel => "20 requests at once",
            Self::Account => "Account and basket",
            Self::Values => "Values",
            Self::Message => "A message for the next page",
            Self::Lifetime => "Lifetime",
            Self::Cookie => "The cookie",
            Self::Devices => "Your devices",
            Self::Exchange => "Headers only",
            Self::OwnSite => "In front of your own site",
        }
    }
}
