//! The arguments of the scripts that change a session: one table for Rust and Lua.
//!
//! A script has each argument as a local variable, `arg_` and its name; [`locals`] writes their declaration.

use redis::Cmd;

/// The value of an argument; nothing is the empty string.
#[derive(Debug)]
pub(super) enum Value<'a> {
    Nothing,
    Number(i64),
    Text(&'a str),
    Owned(String),
}

impl From<bool> for Value<'_> {
    fn from(flag: bool) -> Self {
        if flag { Self::Text("1") } else { Self::Nothing }
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Owned(text)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value<'_> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nothing, Into::into)
    }
}

impl Value<'_> {
    fn add_to(&self, command: &mut Cmd) {
        match self {
            Self::Nothing => command.arg(""),
            Self::Number(number) => command.arg(*number),
            Self::Text(text) => command.arg(*text),
            Self::Owned(text) => command.arg(text),
        };
    }
}

/// Declares arguments, in their order.
macro_rules! arguments {
    ($(#[$doc:meta])* $name:ident { $($(#[$argument_doc:meta])* $argument:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name<'a> {
            $($(#[$argument_doc])* pub(super) $argument: Value<'a>,)*
        }

        impl $name<'_> {
            pub(super) const NAMES: &'static [&'static str] = &[$(stringify!($argument)),*];

            pub(super) fn add_to(&self, command: &mut Cmd) {
                $(self.$argument.add_to(command);)*
            }
        }
    };
}

arguments! {
    /// The arguments with which `use.lua` and `patch.lua` begin. Times and durations are in milliseconds.
    Common {
        now,
        idle_timeout,
        touch_interval,
        absolute_timeout,
        rotation_grace,
        request_token_linger,
        unproven_timeout,
        /// The principal whose index has the session. Nothing if this call has not written the index.
        indexed_principal,
        /// The session's end in that index.
        indexed_until,
    }
}

arguments! {
    /// The further arguments of `use.lua`.
    Use {
        /// The generation of the token.
        generation,
        /// Whether the use prolongs the session.
        touches,
        /// Whether the response sets the cookie.
        sets_cookie,
        /// `session` or `token`.
        proves,
    }
}

arguments! {
    /// The further arguments of `patch.lua`. Three for each operation follow: its name, a key or a principal, and a
    /// text.
    Patch {
        max_values,
        max_bytes,
        /// `request`, `stale` or `service`.
        authority,
        /// The generation of the request; of a service, the number of the session's id.
        generation,
        if_version,
        only_destroys,
        touches,
        leaves_tombstone,
        /// `token` or `id`.
        rotate,
        principal,
        /// The expiry as it is stored; `-` for the policy's.
        expiry,
        /// `missing`, `present` or `tagged`.
        condition,
        condition_key,
        condition_tag,
        /// `value`, `before` or `values`.
        want,
        want_key,
        logs_out,
        /// The tag of the held cookies that were changed; nothing if they are not changed.
        held_tag,
        /// The held cookies after the change.
        held,
        /// Whether their change rotates the token.
        held_rotates,
        /// Whether the last of them was deleted.
        held_emptied,
    }
}

arguments! {
    /// The arguments of `values.lua`. The fields of the values, the names of the operations and their texts follow.
    ValuesChange {
        /// The generation, the time of the cookie, and the expiry, as the caller knows them.
        known,
        /// The held cookies, as the caller knows them.
        held,
        /// The last use, and the end of the record, after the change.
        last_seen_at,
        ends_at,
        max_values,
        max_bytes,
        /// The operation on the value that is returned, from 1.
        wanted,
    }
}

/// Writes the declaration of a script's arguments: locals, and their number.
pub(super) fn locals(names: &[&[&str]]) -> String {
    let names = names.iter().copied().flatten().map(|name| format!("arg_{name}"));
    let names: Vec<String> = names.collect();
    let count = names.len();
    let names = names.join(", ");
    format!("local {names} = unpack(ARGV, 1, {count})\nlocal LAST_ARG = {count}\n")
}

#[cfg(test)]
mod tests {
    use super::super::{JSON, PATCH, PRELUDE, USE, VALUES};
    use super::*;

    /// A misspelled name would be a global variable, which is nil.
    #[test]
    fn scripts_use_declared_arguments() {
        let scripts: [(&[&[&str]], &[&str]); 3] = [
            (&[Common::NAMES, Use::NAMES], &[PRELUDE, USE]),
            (&[Common::NAMES, Patch::NAMES], &[PRELUDE, JSON, PATCH]),
            (&[ValuesChange::NAMES], &[JSON, VALUES]),
        ];
        for (names, parts) in scripts {
            let (names, code) = (names.concat(), parts.concat());
            let lines = code.lines().map(|line| line.split("--").next().unwrap());
            let code = lines.collect::<Vec<_>>().join("\n");
            let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            let used: Vec<&str> =
                words.clone().filter_map(|word| word.strip_prefix("arg_")).collect();
            for name in used.iter().filter(|name| !name.is_empty()) {
                assert!(names.contains(name), "arg_{name} is not declared");
            }
            for name in names {
                assert!(used.contains(&name), "arg_{name} is not used");
            }
            let constants = words.filter(|word| {
                word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
            });
            for name in constants.filter(|name| !["KEYS", "ARGV", "LAST_ARG"].contains(name)) {
                let is_text = code.contains(&format!("'{name}'"));
                assert!(
                    is_text || code.contains(&format!("local {name} ")),
                    "{name} is undeclared"
                );
            }
        }
    }
}
