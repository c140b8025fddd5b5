//! A headless Chromium, driven over WebDriver, for what only a browser can tell of the page.
//!
//! *Invariant:* each browser has a profile of its own that goes with it, and asks nobody but the service under test.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::agent;

/// The name of an element in WebDriver's answers.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// How long it may take until what was caused is seen, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// The tabulator key.
pub(crate) const TAB: &str = "\u{E004}";

/// A page in a browser.
pub(crate) struct Browser {
    driver: Child,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Opens a window of this size; `None` where no browser is installed and none is required.
    pub(crate) fn open((width, height): (u32, u32)) -> Option<Self> {
        let required = std::env::var_os("OUTRIDER_REQUIRE_BROWSER").is_some();
        let spawned = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut driver) = spawned else {
            assert!(!required, "OUTRIDER_REQUIRE_BROWSER is set, but there is no chromedriver");
            eprintln!("skipped: chromedriver is not installed");
            return None;
        };
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("chromedriver ended").unwrap();
            if let Some((_, rest)) = line.split_once("started successfully on port ") {
                break rest.trim_end_matches('.').to_owned();
            }
        };
        // Whoever does not read a pipe blocks its writer.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().unwrap();
        let mut browser =
            Self { driver, session: format!("http://127.0.0.1:{port}"), _profile: profile };
        let profile = browser._profile.path().display();
        let arguments = json!([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            format!("--user-data-dir={profile}"),
        ]);
        let metrics =
            json!({"width": width, "height": height, "pixelRatio": 1.0, "mobile": width < 500});
        let options = json!({"args": arguments, "mobileEmulation": {"deviceMetrics": metrics}});
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.ask("POST", "/session", &wanted);
        let id = session["sessionId"].as_str().unwrap();
        browser.session = format!("{}/session/{id}", browser.session);
        Some(browser)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let answer = match method {
            "GET" => agent().get(url).call(),
            "DELETE" => agent().delete(url).call(),
            _ => agent().post(url).send_json(body),
        };
        let mut answer = answer.unwrap();
        let status = answer.status();
        let mut value: Value = answer.body_mut().read_json().unwrap();
        assert!(status.is_success(), "{method} {path} {body}: {value:#}");
        value["value"].take()
    }

    /// Goes to an address.
    pub(crate) fn visit(&self, url: &str) {
        self.ask("POST", "/url", &json!({"url": url}));
    }

    /// The value of a JavaScript expression on the page.
    pub(crate) fn value(&self, expression: &str) -> Value {
        let script = format!("return ({expression});");
        self.ask("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until a JavaScript expression is true, which something must be on its way to make so.
    pub(crate) fn await_true(&self, expression: &str) {
        let text = || self.value("document.body.innerText");
        assert!(self.comes_true(expression, PATIENCE), "not {expression}: {}", text());
    }

    /// Whether a JavaScript expression becomes true within a time.
    pub(crate) fn comes_true(&self, expression: &str, within: Duration) -> bool {
        let started = Instant::now();
        while self.value(&format!("Boolean({expression})")) != true {
            if started.elapsed() >= within {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    fn find(&self, selector: &str) -> String {
        let wanted = json!({"using": "css selector", "value": selector});
        let found = self.ask("POST", "/element", &wanted);
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// Clicks an element as a person would: it must be visible and not covered.
    pub(crate) fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.ask("POST", &format!("/element/{element}/click"), &json!({}));
    }

    /// Types into an element.
    pub(crate) fn type_into(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.ask("POST", &format!("/element/{element}/value"), &json!({"text": text}));
    }

    /// Presses a key wherever the focus is.
    pub(crate) fn press(&self, key: &str) {
        let strokes = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]});
        self.ask("POST", "/actions", &actions);
    }

    /// The role and the name by which a screen reader knows an element.
    pub(crate) fn role_and_name(&self, selector: &str) -> (String, String) {
        let element = self.find(selector);
        let get = |what| self.ask("GET", &format!("/element/{element}/{what}"), &Value::Null);
        let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
        (word(get("computedrole")), word(get("computedlabel")))
    }

    /// Sets a feature that style sheets ask for, such as `prefers-color-scheme`.
    pub(crate) fn prefer(&self, feature: &str, value: &str) {
        let features = json!([{"name": feature, "value": value}]);
        let command =
            json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}});
        self.ask("POST", "/goog/cdp/execute", &command);
    }

    /// What the page has written to the console since the last call, warnings and errors only.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let entries = self.ask("POST", "/se/log", &json!({"type": "browser"}));
        let severe =
            |entry: &&Value| ["WARNING", "SEVERE"].map(Value::from).contains(&entry["level"]);
        entries.as_array().unwrap().iter().filter(severe).map(Value::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Lets Chromium end in order; a driver that has ended takes it along.
        let _ = agent().delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
