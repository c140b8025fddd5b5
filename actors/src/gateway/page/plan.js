// The running plan in words, and the way to another one: dry run first, then the swap.

import { Refused, json } from "./api.js";
import { at, bytes, make, say } from "./words.js";

let running = null;
let offered = new Map();
let checked = null;

/** Lets the form work, and fills the list with the plans that come with the service. */
export async function setUp() {
  at("swap-form").addEventListener("submit", (event) => {
    event.preventDefault();
    propose(true);
  });
  at("swap").addEventListener("click", () => propose(false));
  at("plan-list").addEventListener("change", forget);
  const shipped = await json("/page/plans.json");
  for (const { name, text } of shipped) offer(name, text);
}

function offer(name, text) {
  if (offered.has(name)) return;
  offered.set(name, text);
  at("plan-list").append(make("option", { value: name }, name));
}

/** A dry run is good for the plan and the generation that it was made for. */
function forget() {
  checked = null;
  at("swap").disabled = true;
  at("swap-note").replaceChildren();
}

/** Reads and shows what runs. False if the service will not say, so that it need not be asked again. */
export async function showPlan() {
  let plan;
  try {
    plan = await json("/v1/plan");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    withoutPlan(error);
    return error.status >= 500;
  }
  at("swap-form").hidden = false;
  if (running?.generation !== plan.generation && checked) forget();
  const known = running?.generation === plan.generation;
  running = plan;
  if (known) return true;
  say("plan-name", `${plan.name} · ${plan.mode} · generation ${plan.generation}`);
  say("plan-text", plan.explanation.trim());
  offer(plan.name, plan.toml);
  await showHistory();
  return true;
}

function withoutPlan(error) {
  running = null;
  at("swap-form").hidden = true;
  at("history-box").hidden = true;
  const why = error.status === 404
    ? "This service does not show its plan."
    : error.status === 401 || error.status === 403
      ? "The plan is shown with an admin key only."
      : `The plan cannot be read: ${error.message}`;
  say("plan-name", why);
  say("plan-text", "");
}

async function showHistory() {
  const { history } = await json("/v1/plan/history");
  at("history-box").hidden = history.length === 0;
  const items = history.slice(-20).reverse().map((entry) => {
    const when = new Date(entry.at_s * 1e3);
    const time = make("time", { datetime: when.toISOString() }, when.toLocaleString());
    const end = entry.error ? `${entry.result}: ${entry.error}` : `${entry.result} in ${Math.round(entry.took_ms)} ms`;
    return make("li", {}, time, ` · ${entry.name}: ${end}; ${entry.because}`);
  });
  at("plan-history").replaceChildren(...items);
  for (const entry of history) offer(entry.name, entry.toml);
}

async function propose(dry) {
  const name = at("plan-list").value;
  const query = new URLSearchParams({ dry_run: dry, expected_generation: running.generation });
  busy(true);
  note([make("p", { class: "quiet" }, dry ? "Asking…" : `Swapping to ${name}; requests go on…`)]);
  try {
    const body = { method: "PUT", text: offered.get(name) };
    const answer = await json(`/v1/plan?${query}`, body);
    if (dry) {
      checked = name;
      note(foreseen(name, answer));
    } else {
      checked = null;
      note([make("p", { class: "good" }, `${answer.plan} runs as generation ${answer.generation}.`)]);
      await showPlan();
    }
  } catch (error) {
    checked = null;
    const words = error instanceof Refused ? error.message : `The service does not answer: ${error.message}`;
    note([make("p", { class: "bad" }, dry ? `It would be refused: ${words}` : `Not swapped, the plan before runs on: ${words}`)]);
    if (!dry) await showPlan();
  } finally {
    busy(false);
  }
}

function foreseen(name, answer) {
  const lines = [make("p", {}, `Dry run: ${name} would run as generation ${answer.generation + 1}.`)];
  if (answer.changes) {
    lines.push(make("pre", { tabindex: "0", role: "region", "aria-label": "What would change" }, answer.changes.trim()));
  }
  for (const { place, extra_bytes, free_bytes, freed_bytes } of answer.memory ?? []) {
    const words = `${place}: ${bytes(extra_bytes)} more during the swap, ${bytes(free_bytes)} free; ${bytes(freed_bytes)} given back after it.`;
    lines.push(make("p", { class: "quiet" }, words));
  }
  const forecast = answer.forecast?.tokens_per_second;
  if (forecast) lines.push(make("p", {}, `Forecast: ${Math.round(forecast)} tokens/s.`));
  return lines;
}

function note(lines) {
  at("swap-note").replaceChildren(...lines);
}

function busy(now) {
  const held = document.activeElement;
  at("dry-run").disabled = now;
  at("plan-list").disabled = now;
  at("swap").disabled = now || checked === null;
  // What had the focus and could not keep it gives it to what comes next.
  if (!now && document.activeElement === document.body) (at("swap").disabled ? at("dry-run") : at("swap")).focus();
  else if (held !== document.body) held.focus();
}
