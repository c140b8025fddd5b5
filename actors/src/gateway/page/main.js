// Reads the service once a second while the page is seen, and shows what it says.

import { Refused, hasKey, json, text, useKey } from "./api.js";
import { showFigures, showState, state } from "./figures.js";
import { drawLanes, readTrace } from "./lanes.js";
import { Reading, Readings } from "./metrics.js";
import * as plan from "./plan.js";
import * as prompt from "./prompt.js";
import { at, say } from "./words.js";

const TURN_MS = 1_000;
/** The longest window; what is read of the timeline each turn. */
const TIMELINE_MS = 2_000;

let readings = new Readings();
let compared = null;
let lanes = new Map();
let held = false;
let heard = null;
/** What the last turn was refused for want of a key: the status, or null. */
let wanted = null;
/** What is not asked for again with this key: it was refused. */
const shut = new Set();

function windowMs() {
  return Number(document.querySelector("#time-base :checked").value);
}

async function figures() {
  const reading = new Reading(await text("/metrics"), performance.now());
  readings.add(reading);
  showFigures(readings, compared);
}

async function timeline() {
  if (held || shut.has("timeline")) return;
  try {
    lanes = readTrace(await json(`/v1/timeline?last_ms=${TIMELINE_MS}`));
    drawLanes(lanes, windowMs());
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status < 500) shut.add("timeline");
    at("lanes").replaceChildren();
    const key = error.status === 401 || error.status === 403;
    say("lanes-text", key ? "The timeline is shown with an admin key only." : "This service does not show its timeline.");
  }
}

/** Null, or why requests cannot be served. */
async function health() {
  try {
    await json("/health");
    return null;
  } catch (error) {
    if (error instanceof Refused && error.status === 503) return error.message;
    throw error;
  }
}

async function turn() {
  if (!shut.size) wanted = null;
  try {
    const sick = await health();
    heard = Date.now();
    document.body.classList.remove("stale");
    await figures();
    showState(readings, sick);
    await timeline();
    if (!shut.has("plan") && !(await plan.showPlan())) shut.add("plan");
  } catch (error) {
    if (error instanceof Refused) {
      const key = error.status === 401 || error.status === 403;
      state(key ? "warn" : "bad", key ? "It serves. Give a key to look inside." : `It answers ${error.status}: ${error.message}`);
    } else {
      document.body.classList.add("stale");
      const since = heard ? ` since ${new Date(heard).toLocaleTimeString()}` : "";
      state("bad", `The service does not answer${since}. What is shown is old.`);
    }
  }
  at("key-form").hidden = wanted === null;
}

async function rounds() {
  for (;;) {
    if (!document.hidden) await turn();
    await new Promise((wake) => setTimeout(wake, prompt.isWriting() ? TURN_MS / 4 : TURN_MS));
  }
}

addEventListener("key-wanted", ({ detail: status }) => {
  const why = status === 403 ? "Plan and timeline need the admin key." : "This service wants an API key.";
  wanted = status;
  say("key-why", hasKey() ? `${why} The one given does not open it.` : why);
  at("key-form").hidden = false;
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value.trim());
  at("key").value = "";
  wanted = null;
  shut.clear();
  at("key-form").hidden = true;
  at("main").focus();
  turn();
});
at("hold").addEventListener("click", () => {
  held = !held;
  at("hold").setAttribute("aria-pressed", String(held));
});
at("time-base").addEventListener("change", () => drawLanes(lanes, windowMs()));
addEventListener("resize", () => drawLanes(lanes, windowMs()));

prompt.setUp((fast, plain) => {
  compared = { fast, plain };
});
plan.setUp();
json("/version").then(
  ({ name, version, target }) => say("version", `${name} ${version}, ${target}`),
  () => {},
);
rounds();
