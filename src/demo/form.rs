//! What a visitor sends with a request: the query, and the fields of a form.

use percent_encoding::percent_decode_str;

/// Names and values, as `application/x-www-form-urlencoded` writes them.
#[derive(Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decoded(name), decoded(value)))
                .collect(),
        )
    }

    /// A field, without the space around it; nothing where there is none.
    pub(super) fn field(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.trim())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }
}

/// What is not UTF-8 is shown as such; a form of ours sends none.
fn decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::Form;

    #[test]
    fn forms_are_read_as_browsers_write_them() {
        let form = Form::parse("name=a+b%26c&empty=&flag&name=second&%C3%A9=%E2%82%AC");
        assert_eq!(form.field("name"), "a b&c");
        assert_eq!(form.field("empty"), "");
        assert_eq!(form.field("é"), "€");
        assert!(form.has("flag") && form.has("empty") && !form.has("other"));
    }
}
