//! Bodies of any bytes, sent to the real gateway over a real connection. Behind it is an engine of simulated units, so
//! that an answer takes microseconds.
//!
//! *Invariant:* every answer is a status of the documented ones with a body that is JSON or events; the service goes on.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use outrider::engine::{EngineLimits, EngineOptions};
use outrider::gateway::{self, GatewayOptions, Keys};
use outrider::office::Office;
use outrider::pair::Pair;
use outrider::unit::DeviceFactory;
use outrider_devices::Device;
use outrider_devices::sim::{RealDelay, SimDevice, SimOptions};
use outrider_observability::{BuildInfo, Registry};
use outrider_pipeline::ModelSource;
use outrider_plans::{ModelRole, PartitionPlan, UnitId};

const PLAN: &str = "name = \"sim\"\nmode = \"sequential\"\ndraft_tokens = 3\n\
    [units.t]\nkind = \"sim\"\n[units.d]\nkind = \"sim\"\n\
    [[target]]\nunit = \"t\"\nlayers = \"all\"\n[[draft]]\nunit = \"d\"\nlayers = \"all\"\n";

/// Where bodies go; the first byte of the input chooses.
const ROUTES: [(&str, &str, &str); 9] = [
    ("POST", "/v1/chat/completions", "application/json"),
    ("POST", "/v1/completions", "application/json"),
    ("POST", "/tokenize", "application/json"),
    ("POST", "/detokenize", "application/json"),
    ("POST", "/apply-template", "application/json"),
    ("PUT", "/v1/plan?dry_run=true", "application/toml"),
    ("PUT", "/v1/plan?dry_run=true", "application/json"),
    ("PUT", "/v1/plan", "application/toml"),
    ("PUT", "/v1/plan", "application/json"),
];
/// Longest body that is sent, bytes.
const BODY_MAX: usize = 4096;

/// Holds one input against the invariant; panics where it does not hold.
pub fn check(bytes: &[u8]) {
    let Some((&first, body)) = bytes.split_first() else { return };
    let route = ROUTES[usize::from(first) % ROUTES.len()];
    let body = &body[..body.len().min(BODY_MAX)];
    let (status, answer) = asked(route, body);
    let documented = [200, 400, 404, 409, 413, 415, 422, 429, 503];
    assert!(documented.contains(&status), "{route:?} was answered {status}: {answer}");
    if !answer.starts_with("data: ") {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(&answer);
        assert!(parsed.is_ok(), "{route:?} was answered {status}: {answer}");
    }
}

/// Sends one request over the kept connection, or a new one where the service has closed it.
fn asked(route: (&str, &str, &str), body: &[u8]) -> (u16, String) {
    static KEPT: Mutex<Option<TcpStream>> = Mutex::new(None);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..2 {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(service()).expect("the service listens");
                stream.set_nodelay(true).expect("a socket");
                let longest = Duration::from_secs(60);
                stream.set_read_timeout(Some(longest)).expect("a socket");
                stream
            }
        };
        if let Some((status, answer, closes)) = exchange(&mut stream, route, body) {
            *kept = (!closes).then_some(stream);
            return (status, answer);
        }
    }
    panic!("{route:?} was not answered");
}

/// One request and its answer: status, body, whether the connection ends. `None` if it had ended before.
fn exchange(
    stream: &mut TcpStream,
    (method, path, media): (&str, &str, &str),
    body: &[u8],
) -> Option<(u16, String, bool)> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: fuzz\r\ncontent-type: {media}\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let mut seen = Vec::new();
    let head_end = loop {
        if let Some(at) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        more(stream, &mut seen)?;
    };
    let head = String::from_utf8_lossy(&seen[..head_end]).to_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut rest = seen.split_off(head_end);
    let named = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let body = match named("content-length: ") {
        Some(length) => {
            let length: usize = length.parse().expect("a length");
            while rest.len() < length {
                more(stream, &mut rest)?;
            }
            rest
        }
        None => {
            while !rest.ends_with(b"0\r\n\r\n") {
                more(stream, &mut rest)?;
            }
            unchunked(&rest)
        }
    };
    let closes = named("connection: ").is_some_and(|word| word.starts_with("close"));
    Some((status, String::from_utf8(body).expect("answers are UTF-8"), closes))
}

/// Reads on. `None` where the connection has ended; the service closes one that nobody uses for some seconds.
fn more(stream: &mut TcpStream, seen: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 8192];
    let count = loop {
        match stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            // The fuzzer's own clock ticks by signals.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read.expect("an answer within a minute"),
        }
    };
    seen.extend_from_slice(&buffer[..count]);
    (count > 0).then_some(())
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&rest[..at]).expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        body.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = &rest[at + 4 + size..];
    }
    body
}

/// The service, started once.
fn service() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            actix::System::new().block_on(async move {
                let office = office().await;
                let options = GatewayOptions {
                    host: "127.0.0.1".into(),
                    port: 0,
                    keys: Keys::default(),
                    cors_origins: Vec::new(),
                    body_bytes_max: BODY_MAX,
                    head_bytes_max: 16 << 10,
                    connections_max: 8,
                    deadline: Duration::from_secs(30),
                    drain_s: 1,
                };
                let (server, addresses) = gateway::listen(office, &options).expect("a port");
                tell.send(addresses[0]).expect("the fuzzer waits");
                server.await.expect("the server goes on");
            });
        });
        told.recv().expect("the service starts")
    })
}

async fn office() -> Office {
    let shipped = ModelSource::Shipped;
    let pair = Pair::open(&shipped(ModelRole::Target), Some(&shipped(ModelRole::Draft)));
    let pair = pair.expect("the shipped pair");
    let limits =
        EngineLimits { context: Some(48), parallel: 4, queue: 8, ..EngineLimits::default() };
    let mut context = limits.plan_context(&pair);
    // Plans for this machine's cores would load the real models again and again.
    context.machine.cores.clear();
    context.machine.adapters.clear();
    let plan = PartitionPlan::from_toml(PLAN, None, &context).expect("the plan is right");
    let build = BuildInfo { version: "fuzz".into(), target: "fuzz".into() };
    let registry = Arc::new(Registry::new(build));
    let unit: DeviceFactory = Arc::new(|| {
        let device = SimDevice::new(SimOptions::default(), Arc::new(RealDelay));
        Ok(Box::new(device) as Box<dyn Device>)
    });
    let mut options = EngineOptions::new(pair, plan, limits, registry);
    options.context = context;
    options.factories =
        BTreeMap::from([(UnitId::new("t"), unit.clone()), (UnitId::new("d"), unit)]);
    Office::open(options).await.expect("the engine starts")
}
