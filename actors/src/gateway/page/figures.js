// The numbers at the top, the table of units, and the one sentence that says how things are.

import { at, bytes, count, draw, make, number, percent, say } from "./words.js";

/** Shows the newest reading. */
export function showFigures(readings, compared) {
  const now = readings.last;
  const speed = readings.rate("generation_tokens_total");
  say("speed", number(speed));

  if (compared) {
    say("gain", `${number(compared.fast / compared.plain)}×`);
    say("gain-note", `${number(compared.fast)} against ${number(compared.plain)}, text below`);
  }

  const total = ["draft", "accepted"].map((word) => now.sum(`spec_decode_num_${word}_tokens_total`));
  const lately = ["draft", "accepted"].map((word) => readings.rate(`spec_decode_num_${word}_tokens_total`, {}, 30_000));
  if (lately[0]) {
    say("acceptance", percent(lately[1] / lately[0]));
    say("acceptance-note", "last 30 s");
  } else if (total[0]) {
    say("acceptance", percent(total[1] / total[0]));
    say("acceptance-note", "since the start");
  }

  say("overlap", percent(readings.rate("device_overlap_seconds_total")));
  const forecast = now.sum("cost_model_predicted_tokens_per_second");
  const error = now.sum("cost_model_error_ratio");
  say("forecast", forecast ? number(forecast) : "–");
  say("forecast-note", forecastInWords(forecast, error));

  const waiting = now.sum("num_requests_waiting") ?? 0;
  say("requests", number(now.sum("num_requests_running")));
  say("requests-note", waiting ? `running, ${waiting} waiting` : "running");
  showHistory(readings, forecast);
  showUnits(readings);
}

function forecastInWords(forecast, error) {
  if (!forecast) return "none: `outrider calibrate`";
  if (!error) return "tokens per second";
  const measured = forecast / (1 + error);
  const sign = error > 0 ? "+" : "−";
  return `measured ${number(measured)} (${sign}${percent(Math.abs(error))})`;
}

function showHistory(readings, forecast) {
  const rates = readings.rates("generation_tokens_total");
  const top = Math.max(forecast ?? 0, ...rates.map(([, rate]) => rate), 1) * 1.1;
  const x = (ago) => 240 - ago * 2;
  const y = (rate) => 40 - (rate / top) * 38;
  const points = rates.map(([ago, rate]) => `${x(ago).toFixed(1)} ${y(rate).toFixed(1)}`);
  const lines = points.length ? [draw("path", { d: `M${points.join("L")}` })] : [];
  if (forecast) lines.push(draw("path", { class: "forecast", d: `M0 ${y(forecast)}H240` }));
  at("history").replaceChildren(...lines);
  const most = Math.max(0, ...rates.map(([, rate]) => rate));
  say("history-text", `at most ${number(most)}${forecast ? `, forecast ${number(forecast)} dashed` : ""}`);
}

function showUnits(readings) {
  const now = readings.last;
  const names = new Set(now.series("device_queue_depth").map((s) => s.labels.device));
  const rows = [...names].sort().map((device) => {
    const share = (role) => readings.rate("device_busy_seconds_total", { device, role }) ?? 0;
    const [target, draft] = [share("target"), share("draft")];
    const bar = make("i", { "aria-hidden": "true" });
    for (const [role, value] of [["target", target], ["draft", draft]]) {
      const part = make("b", { class: role });
      part.style.setProperty("--share", `${Math.min(100 * value, 100)}%`);
      bar.append(part);
    }
    const busy = make("span", { class: "busy" }, bar, percent(target + draft));
    const kind = now.series("device_busy_seconds_total").find((s) => s.labels.device === device)?.labels.kind;
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, kind && kind !== device ? `${device} (${kind})` : device),
      make("td", {}, busy),
      make("td", { class: "wide" }, percent(target)),
      make("td", { class: "wide" }, percent(draft)),
      make("td", { class: "wide" }, number(now.sum("device_queue_depth", { device }))),
      make("td", {}, bytes(now.sum("device_memory_bytes", { device }) ?? 0)),
      make("td", {}, number(now.sum("device_lost_total", { device }) ?? 0)),
    );
  });
  at("units").replaceChildren(...rows);
}

/** How things are, in one sentence. `health` is null, or says why requests cannot be served. */
export function showState(readings, health) {
  const now = readings.last;
  const lost = now.series("device_lost_total").filter((s) => s.value > 0).map((s) => s.labels.device);
  const waiting = now.sum("num_requests_waiting") ?? 0;
  const running = now.sum("num_requests_running") ?? 0;
  if (health) return state("bad", `It cannot serve: ${health}`);
  if (lost.length) return state("warn", `It serves. Lost and rebuilt since the start: ${lost.join(", ")}.`);
  if (waiting) return state("warn", `It serves, and ${count(waiting, "request")} must wait.`);
  return state("good", running ? `All is well. ${count(running, "request")} running.` : "All is well. Nobody asks.");
}

/** Sets the sentence at the top. */
export function state(kind, sentence) {
  at("state").dataset.state = kind;
  say("state-text", sentence);
}
