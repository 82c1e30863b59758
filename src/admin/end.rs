//! Ending sessions: the pages that ask for a confirmation, and the result.

use serde::Serialize;

use super::page::{Encoded, Tab, View, Viewer};
use super::problem::{self, PageResult};
use super::search;
use crate::html::{Form, Text};
use crate::session::id::{Id, PublicId};
use crate::session::patch::Replicated;
use crate::session::record::Principal;
use crate::sessions::{Destroyed, Directory, Failure};
use crate::store::Want;
use crate::wire::EndedObject;

/// The sessions that are to end.
#[derive(Clone, Debug)]
pub(super) enum Selection {
    One(PublicId),
    All { principal: Principal, except: Option<PublicId> },
}

/// The page that asks for a confirmation.
#[derive(Debug)]
pub(super) struct Confirmation {
    pub(super) selection: Selection,
    /// The principal of a single session.
    pub(super) principal: Option<Principal>,
    pub(super) count: usize,
}

/// The result.
#[derive(Debug)]
pub(super) struct Ended(pub(super) Destroyed);

#[derive(Serialize)]
struct ToEnd<'a> {
    id: Option<String>,
    principal: Option<&'a str>,
    except: Option<String>,
    count: usize,
}

impl Selection {
    /// Parses the fields `principal` and `except` of a query or a form.
    pub(super) fn parse(fields: &Form) -> PageResult<Self> {
        let known = ["principal", "except", "form_token"];
        if let Some(unknown) = fields.names().find(|name| !known.contains(name)) {
            return Err(problem::malformed_request(format!("unknown field {unknown:?}")));
        }
        let principal = search::principal(fields.get("principal").unwrap_or_default())?;
        let except = fields.get("except").map(|id| {
            // A mistyped id must not end the session that is to stay.
            PublicId::parse(id).ok_or_else(problem::except_is_of_another)
        });
        Ok(Self::All { principal, except: except.transpose()? })
    }

    /// Counts the sessions, for the confirmation.
    pub(super) async fn confirm(self, directory: &Directory) -> PageResult<Confirmation> {
        match &self {
            Self::One(id) => {
                let found = directory.find(*id, Want::Meta).await?;
                let principal = found.session.and_then(|(_, record)| record.meta.principal);
                Ok(Confirmation { selection: self, principal, count: 1 })
            }
            Self::All { principal, except } => {
                let spared = spared(directory, principal, *except).await?;
                let sessions = directory.sessions_of(principal).await?;
                let count = sessions.iter().filter(|(id, _)| Some(*id) != spared).count();
                Ok(Confirmation { selection: self, principal: None, count })
            }
        }
    }

    /// Ends the sessions.
    pub(super) async fn end(self, directory: &Directory) -> PageResult<Ended> {
        match self {
            Self::One(id) => match directory.destroy(id).await? {
                Destroyed { count: 0, .. } => Err(problem::no_such_session()),
                destroyed => Ok(Ended(destroyed)),
            },
            Self::All { principal, except } => {
                let spared = spared(directory, &principal, except).await?;
                Ok(Ended(directory.destroy_all_of(&principal, spared).await?))
            }
        }
    }
}

/// Finds the session that is to stay, which must be one of the principal.
async fn spared(
    directory: &Directory,
    principal: &Principal,
    except: Option<PublicId>,
) -> PageResult<Option<Id>> {
    let Some(id) = except else { return Ok(None) };
    let found = match directory.find(id, Want::Meta).await {
        Err(Failure::NoSuchSession) => return Err(problem::except_is_of_another()),
        found => found?,
    };
    let is_theirs =
        found.session.is_some_and(|(_, record)| record.meta.principal.as_ref() == Some(principal));
    if is_theirs { Ok(Some(id.place)) } else { Err(problem::except_is_of_another()) }
}

impl View for Confirmation {
    fn tab(&self) -> Tab {
        Tab::Sessions
    }

    fn title(&self) -> String {
        match self.count {
            1 => "End 1 session?".to_owned(),
            count => format!("End {count} sessions?"),
        }
    }

    fn json(&self) -> serde_json::Result<String> {
        let (id, principal, except) = match &self.selection {
            Selection::One(id) => (Some(id.to_string()), self.principal.as_ref(), None),
            Selection::All { principal, except } => {
                (None, Some(principal), except.map(|id| id.to_string()))
            }
        };
        let principal = principal.map(Principal::as_str);
        serde_json::to_string(&ToEnd { id, principal, except, count: self.count })
    }

    fn html(&self, viewer: &Viewer<'_>) -> String {
        let (what, action, fields, back) = match &self.selection {
            Selection::One(id) => {
                let of = self.principal.as_ref().map_or_else(String::new, |principal| {
                    format!(" of <strong>{}</strong>", Text(principal.as_str()))
                });
                let path = format!("/sessions/{id}");
                let what = format!("This ends the session <code>{id}</code>{of}.");
                (what, format!("{path}/end"), String::new(), path)
            }
            Selection::All { principal, except } => {
                let name = Text(principal.as_str());
                let (but, field) = except.map_or_else(<(String, String)>::default, |id| {
                    let field = format!("<input type=hidden name=except value='{id}'>");
                    (format!(" except <code>{id}</code>"), field)
                });
                let what = format!("This ends all sessions of <strong>{name}</strong>{but}.");
                let field = format!("<input type=hidden name=principal value='{name}'>{field}");
                let back = format!("/sessions?principal={}", Encoded(principal.as_str()));
                (what, "/sessions/end".to_owned(), field, back)
            }
        };
        let count = match self.count {
            1 => "1 session".to_owned(),
            count => format!("{count} sessions"),
        };
        format!(
            "<p>{what} Values are lost, and the next request of each browser has no session.</p>\
             <form method=post action='{action}' class='card middle'>{}{fields}<button id=confirm>End {count}</button>\
             <a href='{back}'>Cancel</a></form>",
            viewer.form_token()
        )
    }
}

impl View for Ended {
    fn tab(&self) -> Tab {
        Tab::Sessions
    }

    fn title(&self) -> String {
        match self.0.count {
            1 => "1 session ended".to_owned(),
            count => format!("{count} sessions ended"),
        }
    }

    fn json(&self) -> serde_json::Result<String> {
        let Destroyed { count, replicated } = self.0;
        serde_json::to_string(&EndedObject { ended: count, replicated })
    }

    fn html(&self, _viewer: &Viewer<'_>) -> String {
        let replicated = match self.0.replicated {
            Replicated::NotAsked => "",
            Replicated::Yes => " A replica of the store has it: a failover does not bring it back.",
            Replicated::No => {
                " No replica of the store has confirmed it: a failover in the next moments may bring it back."
            }
        };
        format!(
            "<p class=notice role=status id=ended>{}.{replicated}</p><p><a href='/sessions'>All sessions</a></p>",
            self.title()
        )
    }
}
