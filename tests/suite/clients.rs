//! Other people's programs against the service: the OpenAI client from PyPI, promtool from Prometheus.

use std::process::{Command, Stdio};

use crate::process::Service;

#[test]
fn the_openai_client_streams_a_translation() {
    let Some(python) = std::env::var_os("OUTRIDER_CLIENTS_PYTHON") else {
        eprintln!("skipped: OUTRIDER_CLIENTS_PYTHON names no Python with the openai package");
        return;
    };
    let service = Service::start(&[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/openai_stream.py");
    let output = Command::new(python).arg(script).arg(service.url("/v1")).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("streamed: "), "{out}");
}

#[test]
fn promtool_finds_nothing_to_mend_in_the_metrics() {
    let promtool = Command::new("promtool").arg("--version").output();
    if promtool.is_err() {
        eprintln!("skipped: promtool is not installed");
        return;
    }
    let service = Service::start(&[]);
    let message = serde_json::json!({"messages": [{"role": "user", "content": "I know."}]});
    assert_eq!(service.post("/v1/chat/completions", &message).0, 200);
    let (_, text) = service.get("/metrics");
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut check.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let found = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && found.is_empty(), "{found}");
}
