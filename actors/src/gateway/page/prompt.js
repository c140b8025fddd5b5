// The box to try a text: the answer token by token, coloured by who wrote it, beside plain decoding of the same.

import { Refused, events } from "./api.js";
import { at, make, number, percent, say } from "./words.js";

const TOKENS_MAX = 400;
/** An answer that takes longer is not asked for twice. */
const PATIENCE_MS = 2_000;
let running = null;

/** Lets the box work. `wrote` hears of each comparison: tokens per second with speculation, and without. */
export function setUp(wrote) {
  at("try-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) write(wrote);
  });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("try-form").requestSubmit();
  });
  at("stop").addEventListener("click", () => running?.abort());
}

/** Whether an answer is being written. */
export function isWriting() {
  return running !== null;
}

async function write(wrote) {
  running = new AbortController();
  at("write").disabled = true;
  at("stop").hidden = false;
  at("answer").replaceChildren();
  say("answer-text", "");
  say("answer-note", "Writing…");
  try {
    const fast = await answer({ mark_tokens: true }, show);
    say("answer-text", fast.text);
    say("answer-note", inWords(fast));
    if (at("compare").checked && fast.timings.draft_n > 0) await compare(fast, wrote);
  } catch (error) {
    say("answer-note", inTrouble(error));
  } finally {
    const focused = document.activeElement === at("stop");
    running = null;
    at("write").disabled = false;
    at("stop").hidden = true;
    if (focused) at("write").focus();
  }
}

/** The same text plainly, and, unless that takes long, each once more: the better of two, in turns, and what the lanes
 * show last is speculation. */
async function compare(fast, wrote) {
  say("answer-note", `${inWords(fast)} Now plainly…`);
  const plainly = () => answer({ enabled: false }, () => {});
  const plain = [await plainly()];
  const again = [fast];
  if (fast.timings.predicted_ms < PATIENCE_MS) {
    plain.push(await plainly());
    again.push(await answer({}, () => {}));
  }
  const [speed, alone] = [again, plain].map((all) => Math.max(...all.map(speedOf)));
  wrote(speed, alone);
  const same = [...plain, ...again].every((one) => one.text === fast.text);
  const text = same ? "The same text" : "ANOTHER TEXT, which must not be,";
  const better = again.length > 1 ? " (better of two)" : "";
  say("answer-note", `${inWords(fast)} ${text} plainly: ${number(speed)} against ${number(alone)} tokens/s${better}, ${number(speed / alone)}× the speed.`);
}

async function answer(speculative, shown) {
  const text = at("prompt").value;
  const raw = at("raw").checked;
  const path = raw ? "/v1/completions" : "/v1/chat/completions";
  const asked = raw ? { prompt: text } : { messages: [{ role: "user", content: text }] };
  const body = { ...asked, stream: true, max_tokens: TOKENS_MAX, speculative };
  let written = "";
  let timings = null;
  for await (const event of events(path, { method: "POST", body, signal: running.signal })) {
    const choice = event.choices[0];
    const more = choice?.text ?? choice?.delta?.content ?? "";
    written += more;
    shown(more, choice?.tokens);
    timings = event.timings ?? timings;
  }
  if (!timings) throw new Refused(0, "the answer ended before it was complete");
  return { text: written, timings };
}

function show(text, tokens) {
  if (!tokens) {
    at("answer").append(text);
    return;
  }
  for (const token of tokens.filter((t) => t.text !== "")) {
    const kind = token.drafted ? "drafted" : "own";
    at("answer").append(make("span", { class: `token ${kind}` }, token.text));
  }
}

/** Tokens per second, from the first rows to the last token. */
function speedOf({ timings }) {
  return timings.predicted_n / ((timings.prompt_ms + timings.predicted_ms) / 1e3);
}

function inWords(result) {
  const { predicted_n, prompt_ms, draft_n, draft_n_accepted } = result.timings;
  const drafts = draft_n ? `${draft_n_accepted} of ${draft_n} drafted tokens accepted (${percent(draft_n_accepted / draft_n)})` : "nothing drafted";
  return `${predicted_n} tokens, first after ${number(prompt_ms)} ms, ${number(speedOf(result))} tokens/s, ${drafts}.`;
}

function inTrouble(error) {
  if (error.name === "AbortError") return "Stopped.";
  if (error.status === 401 || error.status === 403) return "It needs an API key: see above.";
  if (error.status === 429 || error.status === 503) return `Not now: ${error.message}.`;
  return error instanceof Refused ? `Refused: ${error.message}` : `The service does not answer: ${error.message}`;
}
