//! Queries and forms.

use percent_encoding::percent_decode_str;

/// Names and values, decoded from `application/x-www-form-urlencoded`.
#[derive(Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
        )
    }

    /// Returns a field without surrounding whitespace; an empty string if there is none.
    pub(super) fn field(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.trim())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }
}

/// Decodes `+` and percent-encoding. The forms of the demo send only UTF-8.
fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::Form;

    #[test]
    fn parses_forms_of_browsers() {
        let form = Form::parse("name=a+b%26c&empty=&flag&name=second&%C3%A9=%E2%82%AC");
        assert_eq!(form.field("name"), "a b&c");
        assert_eq!(form.field("empty"), "");
        assert_eq!(form.field("é"), "€");
        assert!(form.has("flag") && form.has("empty") && !form.has("other"));
    }
}
