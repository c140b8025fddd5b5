//! The product as a process: started, spoken to over its standard streams and HTTP, ended.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long it may take until what was caused is seen, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a request is sent again whose answer depends on chance.
const TRIES: usize = 100;

/// The program under test; `OUTRIDER_UNDER_TEST` names another one where this binary runs away from its build.
pub(crate) fn program() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_outrider-under-test"));
    std::env::var_os("OUTRIDER_UNDER_TEST").map_or_else(built, PathBuf::from)
}

/// Runs a command to its end.
pub(crate) fn outrider(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that must succeed, and returns its standard output.
pub(crate) fn outrider_ok(arguments: &[&str]) -> String {
    let output = outrider(arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{arguments:?} failed:\n{err}\n{out}");
    out
}

/// Runs a command that must fail with exit code 1, and returns its standard error.
pub(crate) fn outrider_fails(arguments: &[&str]) -> String {
    let output = outrider(arguments);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}:\n{err}");
    assert!(!err.contains("panicked"), "{err}");
    err
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A service on a port of its own.
pub(crate) struct Service {
    child: Child,
    address: String,
    log: Option<JoinHandle<String>>,
}

impl Service {
    /// Starts `outrider serve` and waits until it says where it listens.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_in(arguments, &[])
    }

    /// As `start`, with these variables in its environment.
    pub(crate) fn start_in(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(program())
            .args(["serve", "--port", "0"])
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("it ended before it listened").unwrap();
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split_whitespace().next().unwrap().to_owned();
            }
        };
        // Whoever does not read a pipe blocks its writer.
        let log = std::thread::spawn(move || {
            let kept = lines.map_while(Result::ok);
            kept.fold(String::new(), |log, line| log + &line + "\n")
        });
        Self { child, address, log: Some(log) }
    }

    /// The process's id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Status and body of a GET.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut response = agent().get(self.url(path)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// Status and JSON body of a POST.
    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut response = agent().post(self.url(path)).send_json(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    /// The answers to a POST that is sent again until one is as wanted, that one last. How much is drafted depends on what
    /// else the machine does: where drafts lose by that they rest, and are tried again after some hundred tokens.
    pub(crate) fn answers_until(
        &self,
        path: &str,
        body: &Value,
        wanted: impl Fn(&Value) -> bool,
    ) -> Vec<Value> {
        let mut answers = Vec::new();
        for _ in 0..TRIES {
            let (status, answer) = self.post(path, body);
            assert_eq!(status, 200, "{answer}");
            let done = wanted(&answer);
            answers.push(answer);
            if done {
                return answers;
            }
        }
        panic!("{TRIES} times not as wanted: {:#}", answers[TRIES - 1]);
    }

    /// Sends any request; status, headers and body of its answer.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, BTreeMap<String, String>, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let length = body.len();
        // The service may answer, and close, before it has read all.
        let _ = write!(stream, "{head}connection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = text(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let named = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_lowercase(), value.to_owned())
        };
        (status, lines.map(named).collect(), body.to_owned())
    }

    /// Everything that a streamed POST sends, by event.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<String> {
        let mut response = agent().post(self.url(path)).send_json(body).unwrap();
        assert_eq!(response.status().as_u16(), 200);
        let text = response.body_mut().read_to_string().unwrap();
        text.split("\n\n")
            .filter_map(|event| event.strip_prefix("data: ").map(str::to_owned))
            .collect()
    }

    /// Sends a request and returns the open connection, so that the test can leave it.
    pub(crate) fn open(&self, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        stream
    }

    /// One metric's value; its name with labels as in the text.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Waits until a metric has a value.
    pub(crate) fn await_metric(&self, name: &str, value: f64) {
        let started = Instant::now();
        while self.metric(name) != value {
            let waited = started.elapsed();
            assert!(waited < PATIENCE, "{name} did not become {value}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until no more connections are taken.
    pub(crate) fn await_closed(&self) {
        let started = Instant::now();
        while TcpStream::connect(&self.address).is_ok() {
            assert!(started.elapsed() < PATIENCE, "it still listens");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks the process to end.
    pub(crate) fn terminate(&self) {
        // SAFETY: sends a signal to a child that this struct owns and has not yet waited for.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        assert_eq!(sent, 0);
    }

    /// Asks the process to read its plan file again.
    pub(crate) fn hang_up(&self) {
        // SAFETY: sends a signal to a child that this struct owns and has not yet waited for.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGHUP) };
        assert_eq!(sent, 0);
    }

    /// Waits for the process to end, and returns what it wrote to its log.
    pub(crate) fn log(mut self) -> String {
        self.log.take().expect("the log is read once").join().unwrap()
    }

    /// The process.
    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the process to end, and returns its exit code.
    pub(crate) fn wait(mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "it did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads from a connection until `wanted` has come.
pub(crate) fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !text(&seen).contains(wanted) {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the connection ended: {}", text(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
    text(&seen)
}

/// A client that returns errors of the server as answers.
pub(crate) fn agent() -> ureq::Agent {
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
    config.build().into()
}
