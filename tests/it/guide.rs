//! The snippets of a guide, which tests run with ports and paths of their own.

use std::path::Path;

use tokio::process::Command;

use crate::docs::blocks;
use crate::support::PATIENCE;

/// A page of `docs/guides/operate`.
pub(crate) struct Guide {
    name: &'static str,
    text: String,
}

impl Guide {
    pub(crate) fn open(name: &'static str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guides/operate");
        Self { name, text: std::fs::read_to_string(folder.join(name)).unwrap() }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the text under a heading of the second level.
    fn section(&self, heading: &str) -> &str {
        let (_, rest) = self
            .text
            .split_once(&format!("\n## {heading}\n"))
            .unwrap_or_else(|| panic!("{} has no section {heading:?}", self.name));
        rest.split("\n## ").next().unwrap()
    }

    /// Returns the only block of a language under a heading.
    pub(crate) fn block(&self, heading: &str, language: &str) -> String {
        let [block] = self.blocks(heading, language);
        block
    }

    /// Returns the blocks of a language under a heading, which has `N` of them.
    pub(crate) fn blocks<const N: usize>(&self, heading: &str, language: &str) -> [String; N] {
        let blocks = blocks(self.section(heading)).into_iter();
        let blocks = blocks.filter(|(known, _)| *known == language);
        let blocks: Vec<_> = blocks.map(|(_, block)| block.to_owned()).collect();
        let count = blocks.len();
        blocks
            .try_into()
            .unwrap_or_else(|_| panic!("{}, {heading}: {count} {language} blocks", self.name))
    }
}

/// Runs a command of a guide, whose `sudo` does nothing. Panics with its output if it fails, and if it does not end.
pub(crate) async fn run(line: &str) {
    let script = format!("set -euo pipefail\nsudo() {{ \"$@\"; }}\n{line}\n");
    let output = Command::new("bash").args(["-c", &script]).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await;
    let output = output.unwrap_or_else(|_| panic!("{line}: does not end")).unwrap();
    let printed = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&printed));
}

/// Replaces each of these texts, which must occur.
pub(crate) fn put(text: &str, replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is not in\n{text}");
        text.replace(from, to)
    })
}
