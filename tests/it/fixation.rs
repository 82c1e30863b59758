//! Session fixation, on the clock of the system.

use std::time::Duration;

use crate::support::fixation;

#[tokio::test]
async fn polled_planted_token_opens_no_log_in() {
    let all = fixation(Duration::from_secs(2)).await;
    for polls in &all {
        assert_eq!(polls.stolen, Vec::<String>::new(), "{}", polls.name);
        // The token was valid before, and was used in each phase.
        assert!(polls.opened_before > 0 && polls.after > 0, "{polls:?}");
    }
    let replaced = all.iter().filter(|polls| polls.replaced > 0).map(|polls| polls.name);
    assert_eq!(replaced.collect::<Vec<_>>(), ["changed value"]);
}
