//! A user's sessions are found among 100,000, and ended, on the program.

use std::path::Path;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::listeners::configuration;
use super::{Operator, TOKEN, hidden, start};
use crate::support::{Browser, Program, Script, Upstream};

const MANY: u32 = 100_000;

/// Copies a session under other ids and names, as another process that shares the database would write them.
fn copy_session(database: &Path, copies: u32) {
    let connection = Connection::open(database).unwrap();
    let copy = format!(
        "CREATE TEMP TABLE copies AS
           WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {copies})
           SELECT * FROM (SELECT * FROM sessions WHERE principal = 'ada' LIMIT 1), numbers;
         UPDATE copies SET id = randomblob(16), principal = 'user-' || n;
         ALTER TABLE copies DROP COLUMN n;
         INSERT INTO sessions SELECT * FROM copies;"
    );
    connection.execute_batch(&copy).unwrap();
}

async fn log_in(browser: &Browser, name: &str) -> String {
    let script = Script::new().patch(&json!({"principal": name, "set": {"cart": [1, 2]}}));
    browser.navigate("/", &script).await.json()["id"].as_str().unwrap().to_owned()
}

async fn principal(browser: &Browser) -> Option<String> {
    browser.navigate("/", &Script::new()).await.saw("x-session-principal")
}

fn ids(list: &Value) -> Vec<&str> {
    list["sessions"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn sessions_of_a_user_are_ended_among_100_000() {
    let upstream = Upstream::start();
    let admin = format!("address = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"");
    let (directory, file) = configuration(&upstream, "", &admin);
    let program = Program::start(&file);
    let serving = program.serving().await;
    let visitors = [(); 3].map(|()| Browser::to(serving.public));
    let mut known = Vec::new();
    for visitor in &visitors {
        known.push(log_in(visitor, "ada").await);
    }
    copy_session(&directory.path().join("cloakroom.db"), MANY - 3);

    let operator = Operator::to(serving.admin).log_in(TOKEN).await;
    let found = operator.json("/sessions?principal=ada").await;
    assert_eq!((&found["matched"], &found["complete"]), (&json!(3), &json!(true)), "{found}");
    assert!(known.iter().all(|id| ids(&found).contains(&id.as_str())), "{found}");
    let other = operator.json("/sessions?principal=user-77777").await;
    assert_eq!(ids(&other).len(), 1, "{other}");
    let whole = operator.json(&format!("/sessions?id={}", known[1])).await;
    assert_eq!(ids(&whole), [&known[1]]);
    let prefix = operator.json(&format!("/sessions?id={}", start(&known[1], 10))).await;
    let is_complete = prefix["complete"] == true;
    assert_eq!(is_complete, prefix["scanned"] == MANY, "{prefix}");
    assert!(ids(&prefix) == [&known[1]] || !is_complete, "{prefix}");

    let one = format!("/sessions/{}/end", known[0]);
    for (path, ended, left) in [(one.as_str(), 1, 2), ("/sessions/end?principal=ada", 2, 0)] {
        let form_token = hidden(&operator.get(path).await, "form_token");
        let path = path.split('?').next().unwrap();
        let body = format!("form_token={form_token}&principal=ada");
        let page = operator.send("POST", path, &body).await;
        assert!(page.body.contains(&format!("{ended} session")), "{}", page.body);
        let mut logged_in = 0;
        for visitor in &visitors {
            logged_in += usize::from(principal(visitor).await.is_some());
        }
        assert_eq!(logged_in, left);
    }
    let audit = operator.json("/audit?kind=destroyed&principal=ada").await;
    let entries = audit["entries"].as_array().unwrap();
    assert!(entries.len() == 3 && entries.iter().all(|entry| entry["by"] == "operator"), "{audit}");
}
