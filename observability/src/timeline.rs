//! The last jobs of every unit, as a trace that Perfetto and Chrome open.
//!
//! *Invariant:* holds at most as many events as it was made for; the oldest make room.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

/// Something that happened on a lane: a job on a unit, or a moment worth a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineEvent {
    /// The lane: a unit's name, or `plan` for swaps.
    pub lane: String,
    /// What ran, such as `target[0..8]`.
    pub name: String,
    /// The request that it ran for, if it was for one.
    pub request: Option<String>,
    /// Start in microseconds of one clock that all lanes share.
    pub start_us: u64,
    /// Length in microseconds; `None` for a mark.
    pub dur_us: Option<u64>,
}

/// A bounded memory of what happened last.
#[derive(Clone, Debug)]
pub struct Timeline {
    events: VecDeque<TimelineEvent>,
    events_max: usize,
    forgotten: u64,
}

impl Timeline {
    /// Remembers the last `events_max` events.
    ///
    /// Panics if that is none.
    pub fn new(events_max: usize) -> Self {
        assert!(events_max > 0, "a timeline remembers something");
        Self { events: VecDeque::with_capacity(events_max), events_max, forgotten: 0 }
    }

    /// Adds an event; the oldest one makes room if need be.
    pub fn record(&mut self, event: TimelineEvent) {
        if self.events.len() == self.events_max {
            self.events.pop_front();
            self.forgotten += 1;
        }
        self.events.push_back(event);
    }

    /// The events, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &TimelineEvent> {
        self.events.iter()
    }

    /// The newest part: the events that end within `last_us` microseconds before the newest end. Events are recorded at
    /// their ends, so only this part is looked at.
    pub fn newest(&self, last_us: u64) -> Self {
        let end = |event: &TimelineEvent| event.start_us + event.dur_us.unwrap_or(0);
        let since = self.events.back().map_or(0, end).saturating_sub(last_us);
        let rest = self.events.iter().rev().take_while(|event| end(event) >= since);
        let mut events: VecDeque<_> = rest.cloned().collect();
        events.make_contiguous().reverse();
        let forgotten = self.forgotten + (self.events.len() - events.len()) as u64;
        Self { events, events_max: self.events_max, forgotten }
    }

    /// The events as a JSON object of the Trace Event Format: one thread for each lane, lanes in alphabetical order,
    /// complete events (`X`) for jobs and instant events (`i`) for marks.
    pub fn to_chrome_json(&self) -> String {
        let mut lanes: BTreeMap<&str, usize> =
            self.events.iter().map(|event| (event.lane.as_str(), 0)).collect();
        for (index, lane) in lanes.values_mut().enumerate() {
            *lane = index + 1;
        }
        let names = lanes.iter().map(|(name, thread)| {
            json!({
                "ph": "M", "name": "thread_name", "pid": 1, "tid": thread, "args": { "name": name },
            })
        });
        let events = self.events.iter().map(|event| trace_event(event, lanes[event.lane.as_str()]));
        let mut text = format!(
            "{{\"displayTimeUnit\":\"ms\",\"otherData\":{{\"forgotten_events\":{}}},\"traceEvents\":[",
            self.forgotten
        );
        // Event by event: all of them as a tree would take a kilobyte each.
        for (index, event) in names.chain(events).enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(&event.to_string());
        }
        text.push_str("]}");
        text
    }
}

/// A timeline that several threads write to.
#[derive(Clone, Debug)]
pub struct SharedTimeline {
    timeline: Arc<Mutex<Timeline>>,
}

impl SharedTimeline {
    /// Remembers the last `events_max` events.
    ///
    /// Panics if that is none.
    pub fn new(events_max: usize) -> Self {
        Self { timeline: Arc::new(Mutex::new(Timeline::new(events_max))) }
    }

    /// Adds something that took time on a lane, in nanoseconds of the clock that all lanes share.
    pub fn span(&self, lane: &str, name: String, at_ns: Range<u64>) {
        let (start_us, end_us) = (at_ns.start / 1000, at_ns.end / 1000);
        let event = TimelineEvent {
            lane: lane.to_owned(),
            name,
            request: None,
            start_us,
            dur_us: Some(end_us.saturating_sub(start_us)),
        };
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).record(event);
    }

    /// See [`Timeline::to_chrome_json`]; the newest part alone if `last_us` says how much, see [`Timeline::newest`].
    pub fn to_chrome_json(&self, last_us: Option<u64>) -> String {
        let timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = last_us.map_or_else(|| timeline.clone(), |last_us| timeline.newest(last_us));
        // The text takes long to make: the writers get on meanwhile.
        drop(timeline);
        copy.to_chrome_json()
    }
}

fn trace_event(event: &TimelineEvent, thread: usize) -> Value {
    let mut value = json!({
        "name": event.name, "cat": "outrider", "pid": 1, "tid": thread, "ts": event.start_us,
    });
    match event.dur_us {
        Some(dur_us) => {
            value["ph"] = json!("X");
            value["dur"] = json!(dur_us);
        }
        None => {
            value["ph"] = json!("i");
            value["s"] = json!("g");
        }
    }
    if let Some(request) = &event.request {
        value["args"] = json!({ "request": request });
    }
    value
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::{Value, json};

    use super::{Timeline, TimelineEvent};

    fn job(lane: &str, start_us: u64) -> TimelineEvent {
        TimelineEvent {
            lane: lane.to_owned(),
            name: "target[0..8]".to_owned(),
            request: Some("r-1".to_owned()),
            start_us,
            dur_us: Some(40),
        }
    }

    #[test]
    fn the_oldest_events_make_room() {
        let mut timeline = Timeline::new(2);
        (0..5).for_each(|t| timeline.record(job("cpu0", t)));
        assert_eq!(timeline.events().map(|e| e.start_us).collect::<Vec<_>>(), [3, 4]);
        let trace: Value = serde_json::from_str(&timeline.to_chrome_json()).unwrap();
        assert_eq!(trace["otherData"]["forgotten_events"], 3);
    }

    #[test]
    fn the_newest_part_ends_where_all_ends() {
        let mut timeline = Timeline::new(8);
        assert_eq!(timeline.newest(100).events().count(), 0);
        [0, 100, 200, 300].iter().for_each(|&t| timeline.record(job("cpu0", t)));
        let newest = timeline.newest(100);
        assert_eq!(newest.events().map(|e| e.start_us).collect::<Vec<_>>(), [200, 300]);
        assert_eq!(newest.forgotten, 2);
        assert_eq!(timeline.newest(u64::MAX).events().count(), 4);
    }

    #[test]
    fn lanes_are_threads_and_jobs_are_complete_events() {
        let mut timeline = Timeline::new(8);
        timeline.record(job("gpu0", 10));
        timeline.record(job("cpu0", 20));
        let swap = TimelineEvent { dur_us: None, request: None, ..job("plan", 30) };
        timeline.record(TimelineEvent { name: "swap \"two-cores\"".to_owned(), ..swap });
        let trace: Value = serde_json::from_str(&timeline.to_chrome_json()).unwrap();
        let thread = |tid: u64, name: &str| json!({ "ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": { "name": name } });
        let ran = |tid: u64, ts: u64| json!({ "ph": "X", "name": "target[0..8]", "cat": "outrider", "pid": 1, "tid": tid, "ts": ts, "dur": 40, "args": { "request": "r-1" } });
        let mark = json!({ "ph": "i", "s": "g", "name": "swap \"two-cores\"", "cat": "outrider", "pid": 1, "tid": 3, "ts": 30 });
        let expected = json!([
            thread(1, "cpu0"),
            thread(2, "gpu0"),
            thread(3, "plan"),
            ran(2, 10),
            ran(1, 20),
            mark
        ]);
        assert_eq!(trace["traceEvents"], expected);
    }
}
