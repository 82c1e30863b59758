//! HTML: escaping of text, and the forms and queries that browsers send.

use std::fmt::{self, Write as _};

use percent_encoding::percent_decode_str;

/// Text inside HTML, in an element or in a quoted attribute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a>(pub(crate) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// Names and values, decoded from `application/x-www-form-urlencoded`.
///
/// It has no `Debug` output of its own: a field may be a secret.
#[derive(Default)]
pub(crate) struct Form(Vec<(String, String)>);

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Form {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
        )
    }

    /// Returns a field without surrounding whitespace; an empty string if there is none.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.trim())
    }

    /// Returns the first field of a name as it is.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the names of all fields.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }
}

/// Decodes `+` and percent-encoding. Our forms send only UTF-8.
fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::{Form, Text};

    #[test]
    fn escapes_text() {
        let text = Text("<b title=\"a\" id='b'>&").to_string();
        assert_eq!(text, "&lt;b title=&quot;a&quot; id=&#39;b&#39;&gt;&amp;");
    }

    #[test]
    fn parses_forms_of_browsers() {
        let form = Form::parse("name=a+b%26c&empty=&flag&name=second&%C3%A9=%E2%82%AC");
        assert_eq!(form.field("name"), "a b&c");
        assert_eq!(form.field("empty"), "");
        assert_eq!(form.field("é"), "€");
        assert!(form.has("flag") && form.has("empty") && !form.has("other"));
    }
}
