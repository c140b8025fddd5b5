//! The page at `/`, looked at in a browser: as an operator at a desk, on a phone, by keyboard, through a screen reader.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::browser::{Browser, TAB};
use crate::process::Service;

const DESK: (u32, u32) = (1280, 800);
const PHONE: (u32, u32) = (390, 844);

/// A service on two units, and a browser that has read its page once; `None` without a browser.
fn opened(size: (u32, u32), arguments: &[&str]) -> Option<(Service, Browser)> {
    let browser = Browser::open(size)?;
    let service = Service::start(arguments);
    browser.visit(&service.url("/"));
    browser.await_true("document.querySelectorAll('#units tr').length > 0");
    Some((service, browser))
}

const TWO_UNITS: &[&str] = &["--plan", "overlap-two-cores"];

/// Writes the text of the box, until what comes of it is as wanted too: whether draft and target happen to run at once depends
/// on what else the machine does.
fn write_until(browser: &Browser, wanted: &str) {
    // Longer than the page takes to read the service again.
    const SEEN_WITHIN: Duration = Duration::from_secs(3);
    for _ in 0..40 {
        browser.click("#write");
        browser.await_true("!document.querySelector('#write').disabled");
        let drafted = browser
            .value("document.querySelector('#answer-note').textContent.includes('× the speed')");
        if drafted == true && browser.comes_true(wanted, SEEN_WITHIN) {
            return;
        }
    }
    panic!("never {wanted}: {}", browser.value("document.body.innerText"));
}

#[test]
fn a_text_is_written_with_coloured_tokens_and_both_models_are_seen_on_their_lanes() {
    // Unguarded: on a machine that has much else to do drafts lose, and would rest.
    let unguarded = [TWO_UNITS, &["--guard=false"]].concat();
    let Some((_service, browser)) = opened(DESK, &unguarded) else { return };
    // The longest window, so that it holds more than one round.
    browser.click("#time-base label:last-of-type");
    write_until(
        &browser,
        "['#answer .drafted', '#answer .own', '#lanes rect.target', '#lanes rect.draft', '#lanes rect.both']\
         .every(part => document.querySelector(part))",
    );
    let text = browser.value("document.querySelector('#answer').textContent");
    assert!(text.as_str().unwrap().contains("Installation"), "{text}");
    let read_out = browser.value("document.querySelector('#answer-text').textContent");
    assert_eq!(read_out, text, "a screen reader hears what is seen");
    let note = browser.value("document.querySelector('#answer-note').textContent");
    assert!(note.as_str().unwrap().contains("The same text"), "{note}");
    let words = browser.value("document.querySelector('#lanes-text').textContent");
    let words = words.as_str().unwrap();
    assert!(
        ["cpu0", "cpu1", "target", "draft", "at once"].iter().all(|w| words.contains(w)),
        "{words}"
    );
    browser.await_true("document.querySelector('#acceptance').textContent.includes('%')");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_plan_is_swapped_from_the_list_after_a_dry_run() {
    let Some((service, browser)) = opened(DESK, TWO_UNITS) else { return };
    browser.await_true("document.querySelector('#plan-text').textContent.includes('cpu1')");
    assert_eq!(browser.value("document.querySelector('#swap').disabled"), true);
    browser.value("document.querySelector('#plan-list').focus()");
    browser.type_into("#plan-list", "sequential-all-cores");
    browser.click("#dry-run");
    browser.await_true(
        "document.querySelector('#swap-note').textContent.includes('would run as generation 2')",
    );
    let still = service.get("/v1/plan").1;
    assert!(still.contains("\"overlap-two-cores\""), "a dry run changes nothing: {still}");
    browser.click("#swap");
    browser.await_true(
        "document.querySelector('#plan-name').textContent.includes('sequential-all-cores')",
    );
    browser.await_true("document.querySelector('#plan-name').textContent.includes('generation 2')");
    let now = service.get("/v1/plan").1;
    assert!(now.contains("\"sequential-all-cores\""), "{now}");
    assert_eq!(browser.value("document.querySelector('#swap').disabled"), true);
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_plan_that_does_not_fit_is_refused_in_words() {
    let Some((_service, browser)) = opened(DESK, &["--plan", "plain-all-cores"]) else { return };
    browser.await_true("!document.querySelector('#swap-form').hidden");
    let wrong = "[...document.querySelectorAll('#plan-list option')].length > 3";
    browser.await_true(wrong);
    // A list entry that the service cannot know.
    browser.value(
        "document.querySelector('#plan-list').append(new Option('nowhere', 'nowhere', true, true))",
    );
    browser.click("#dry-run");
    browser.await_true("document.querySelector('#swap-note .bad')");
    assert_eq!(browser.value("document.querySelector('#swap').disabled"), true);
}

#[test]
fn everything_is_reached_by_keyboard_and_has_a_name() {
    let Some((_service, browser)) = opened(DESK, TWO_UNITS) else { return };
    let controls = "a[href], button, input, select, textarea, summary, [tabindex=\"0\"]";
    let seen = format!(
        "[...document.querySelectorAll('{controls}')].filter(e => e.checkVisibility() && !e.disabled)\
         .map((e, i) => {{ e.dataset.nth = i; return [String(i), e.name || '']; }})"
    );
    let all: Vec<(String, String)> = serde_json::from_value(browser.value(&seen)).unwrap();
    assert!(all.len() > 12, "{all:?}");
    for (nth, _) in &all {
        let (role, name) = browser.role_and_name(&format!("[data-nth=\"{nth}\"]"));
        assert!(!name.is_empty() && !role.is_empty(), "control {nth} is `{role}` without a name");
    }
    browser.value("document.activeElement.blur()");
    let mut reached = BTreeSet::new();
    for _ in 0..all.len() + 4 {
        browser.press(TAB);
        if let Value::String(nth) = browser.value("document.activeElement.dataset.nth ?? null") {
            reached.insert(nth);
        }
        let ring = "getComputedStyle(document.activeElement).outlineStyle";
        let invisible =
            "document.activeElement === document.body || document.activeElement.type === 'radio'";
        if browser.value(invisible) != true {
            assert_ne!(browser.value(ring), "none", "the focus cannot be seen");
        }
    }
    // Arrows, not the tabulator, go from one radio button of a group to the next.
    let missed: Vec<_> =
        all.iter().filter(|(nth, group)| group != "window" && !reached.contains(nth)).collect();
    assert!(missed.is_empty(), "{missed:?} are not reached by keyboard");
    let landmarks = browser.value(
        "['header', 'main', 'footer', 'h1'].every(t => document.querySelectorAll(t).length === 1)",
    );
    assert_eq!(landmarks, true);
    let titles = browser.value("[...document.querySelectorAll('section')].every(s => document.getElementById(s.getAttribute('aria-labelledby')))");
    assert_eq!(titles, true);
}

#[test]
fn a_phone_needs_no_sideways_scrolling_and_both_schemes_have_contrast() {
    let Some((_service, browser)) = opened(PHONE, TWO_UNITS) else { return };
    write_until(&browser, "document.querySelector('#answer .drafted')");
    for scheme in ["light", "dark"] {
        browser.prefer("prefers-color-scheme", scheme);
        let widths = browser.value("[document.documentElement.scrollWidth, window.innerWidth]");
        assert_eq!(widths[0], widths[1], "{scheme}: it is wider than the screen");
        for (what, on, least) in [
            ("--ink", "--sheet", 7.0),
            ("--ink", "--draft-wash", 7.0),
            ("--ink", "--target-wash", 7.0),
            ("--quiet", "--sheet", 4.5),
            ("--quiet", "--paper", 4.5),
            ("--warn", "--paper", 4.5),
            ("--bad", "--paper", 4.5),
            ("--on-first", "--target", 4.5),
            ("--target", "--sheet", 4.5),
            ("--draft", "--sheet", 3.0),
            ("--both", "--sheet", 3.0),
        ] {
            let [one, two] = [what, on].map(|name| luminance(&browser, name));
            let contrast = (one.max(two) + 0.05) / (one.min(two) + 0.05);
            assert!(contrast >= least, "{scheme}: {what} on {on} has {contrast:.2} of {least}");
        }
    }
}

/// The relative luminance of a colour of the style sheet, as WCAG defines it.
fn luminance(browser: &Browser, name: &str) -> f64 {
    let colour = browser.value(&format!(
        "getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()"
    ));
    let digits = colour.as_str().unwrap().trim_start_matches('#').to_owned();
    assert_eq!(digits.len(), 6, "{name} is {colour}");
    let channel = |at: usize| {
        let value = f64::from(u8::from_str_radix(&digits[at..at + 2], 16).unwrap()) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * channel(0) + 0.7152 * channel(2) + 0.0722 * channel(4)
}

#[test]
fn the_page_says_when_the_service_is_gone() {
    let Some((service, browser)) = opened(DESK, TWO_UNITS) else { return };
    browser.await_true("document.querySelector('#state').dataset.state === 'good'");
    drop(service);
    browser.await_true("document.querySelector('#state').dataset.state === 'bad'");
    let state = browser.value("document.querySelector('#state').textContent");
    assert!(state.as_str().unwrap().contains("does not answer"), "{state}");
}

#[test]
fn the_page_holds_the_browser_to_the_service() {
    let service = Service::start(&[]);
    let (status, headers, page) = service.send("GET", "/", &[], "");
    assert_eq!(status, 200);
    let policy = &headers["content-security-policy"];
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    for part in page.split(['"', '\'']).filter(|word| word.starts_with("/page/")) {
        assert_eq!(service.get(part).0, 200, "{part}");
    }
    assert!(!page.contains("http://") && !page.contains("https://"), "it names another host");
    assert_eq!(service.get("/page/nothing.js").0, 404);
}

#[test]
fn a_service_with_keys_asks_for_one_and_shows_what_it_opens() {
    let Some(browser) = Browser::open(DESK) else { return };
    let service = Service::start(&["--api-key", "reader", "--admin-key", "operator"]);
    browser.visit(&service.url("/"));
    browser.await_true("!document.querySelector('#key-form').hidden");
    assert_eq!(browser.value("document.querySelectorAll('#units tr').length"), 0);
    let give = |key: &str| {
        browser.type_into("#key", key);
        browser.click("#key-form button");
    };
    give("wrong");
    browser.await_true("document.querySelector('#key-why').textContent.includes('does not open')");
    give("reader");
    browser.await_true("document.querySelectorAll('#units tr').length > 0");
    browser.await_true("document.querySelector('#plan-name').textContent.includes('admin key')");
    browser.await_true("!document.querySelector('#key-form').hidden");
    give("operator");
    browser.await_true("document.querySelector('#plan-text').textContent.includes('layers')");
    browser.await_true("document.querySelector('#key-form').hidden");
    assert_eq!(browser.value("localStorage.length + document.cookie.length"), 0);
}
