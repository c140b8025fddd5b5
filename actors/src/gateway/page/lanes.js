// The units as on a scope: one lane each, what it computed when, and below them when two computed at once.

import { at, draw, percent, say } from "./words.js";

const LANE = 36;
const TOP = 20;
const NAME = 14;

/** The spans of a Chrome trace by lane, in milliseconds, oldest first. */
export function readTrace(trace) {
  const names = new Map();
  const lanes = new Map();
  for (const event of trace.traceEvents) {
    if (event.ph === "M" && event.name === "thread_name") names.set(event.tid, event.args.name);
  }
  for (const event of trace.traceEvents) {
    if (event.ph !== "X") continue;
    const name = names.get(event.tid) ?? String(event.tid);
    if (name === "plan") continue;
    const role = /^(draft|target)/.exec(event.name)?.[1] ?? "other";
    const span = { role, name: event.name, from: event.ts / 1e3, to: (event.ts + event.dur) / 1e3 };
    if (!lanes.has(name)) lanes.set(name, []);
    lanes.get(name).push(span);
  }
  for (const spans of lanes.values()) spans.sort((a, b) => a.from - b.from);
  return new Map([...lanes].sort(([a], [b]) => a.localeCompare(b)));
}

/** When at least two lanes were busy, within a window. */
export function together(lanes, from, to) {
  const edges = [];
  for (const spans of lanes.values()) {
    for (const span of spans) {
      if (span.to <= from || span.from >= to) continue;
      edges.push([Math.max(span.from, from), 1], [Math.min(span.to, to), -1]);
    }
  }
  edges.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const found = [];
  let [busy, since] = [0, 0];
  for (const [when, step] of edges) {
    if (busy >= 2 && busy + step < 2 && when > since) found.push({ from: since, to: when });
    if (busy < 2 && busy + step >= 2) since = when;
    busy += step;
  }
  return found;
}

/** Joins neighbours of one role that a screen cannot tell apart. */
function joined(spans, gap) {
  const out = [];
  for (const span of spans) {
    const last = out.at(-1);
    if (last && last.role === span.role && span.from - last.to < gap) last.to = Math.max(last.to, span.to);
    else out.push({ ...span });
  }
  return out;
}

/** Draws the last `window_ms` before the newest span's end. */
export function drawLanes(lanes, window_ms) {
  const place = at("lanes");
  const ends = [...lanes.values()].flatMap((spans) => (spans.length ? [spans.at(-1).to] : []));
  if (!ends.length) {
    place.replaceChildren();
    say("lanes-text", "Nothing has run yet. Try a text below.");
    return;
  }
  const to = Math.max(...ends);
  const from = to - window_ms;
  const width = Math.max(place.clientWidth, 240);
  const x = (ms) => ((ms - from) / window_ms) * width;
  const height = TOP + lanes.size * (LANE + NAME) + 16;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });

  for (let i = 0; i <= 4; i++) {
    const at_x = (i / 4) * width;
    svg.append(draw("line", { class: "tick", x1: at_x, x2: at_x, y1: 14, y2: height }));
    const anchor = i === 0 ? "start" : i === 4 ? "end" : "middle";
    const text = i === 4 ? "newest" : `−${window_ms * (1 - i / 4)} ms`;
    svg.append(draw("text", { x: at_x, y: 10, "text-anchor": anchor }, text));
  }
  let y = TOP;
  const said = [];
  for (const [name, spans] of lanes) {
    const seen = spans.filter((s) => s.to > from && s.from < to);
    svg.append(draw("text", { class: "name", x: 0, y: y + 11 }, name));
    y += NAME;
    svg.append(draw("line", { class: "rail", x1: 0, x2: width, y1: y + LANE - 4, y2: y + LANE - 4 }));
    const busy = { target: 0, draft: 0, other: 0 };
    for (const span of seen) busy[span.role] += Math.min(span.to, to) - Math.max(span.from, from);
    for (const span of joined(seen, window_ms / width / 2)) {
      // Also told apart by height, for those who see no hues.
      const tall = span.role === "draft" ? LANE - 16 : LANE - 8;
      const left = Math.max(x(span.from), 0);
      const box = { class: span.role, x: left, y: y + LANE - 4 - tall, height: tall, rx: 1 };
      const rect = draw("rect", { ...box, width: Math.max(x(span.to) - left, 1) });
      rect.append(draw("title", {}, `${name}: ${span.name}, ${(span.to - span.from).toFixed(2)} ms`));
      svg.append(rect);
    }
    const shares = Object.entries(busy).filter(([, ms]) => ms > 0);
    const words = shares.map(([role, ms]) => `${role} ${percent(ms / window_ms)}`).join(", ");
    said.push(`${name}: ${words || "idle"}`);
    y += LANE;
  }
  const both = together(lanes, from, to);
  for (const span of both) {
    const left = x(span.from);
    svg.append(draw("rect", { class: "both", x: left, y: y + 4, height: 5, width: Math.max(x(span.to) - left, 0.5) }));
  }
  if (lanes.size > 1) {
    const share = both.reduce((sum, s) => sum + s.to - s.from, 0) / window_ms;
    said.push(`at once ${percent(share)}`);
  }
  place.replaceChildren(svg);
  say("lanes-text", `The last ${window_ms} ms of work. ${said.join(" · ")}.`);
}
