// Reads the Prometheus text, and makes rates of its counters.

const SAMPLE = /^([a-z0-9_:]+)(?:\{(.*)\})? ([^ ]+)$/i;
const LABEL = /([a-z0-9_]+)="((?:[^"\\]|\\.)*)"/gi;

/** One reading of `/metrics`, taken at `at_ms`. */
export class Reading {
  constructor(text, at_ms) {
    this.at_ms = at_ms;
    this.families = new Map();
    for (const line of text.split("\n")) {
      const found = line.startsWith("#") ? null : SAMPLE.exec(line);
      if (!found) continue;
      const labels = {};
      for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) {
        labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
      }
      const family = this.families.get(found[1]) ?? [];
      family.push({ labels, value: Number(found[3]) });
      this.families.set(found[1], family);
    }
  }

  /** The series of a metric. */
  series(name) {
    return this.families.get(`outrider_${name}`) ?? [];
  }

  /** The sum over all series that have these labels; null if there is none. */
  sum(name, labels = {}) {
    const wanted = Object.entries(labels);
    const found = this.series(name).filter((s) => wanted.every(([k, v]) => s.labels[k] === v));
    return found.length ? found.reduce((sum, s) => sum + s.value, 0) : null;
  }
}

/** The readings of the last two minutes. */
export class Readings {
  #all = [];

  add(reading) {
    const last = this.#all.at(-1);
    // Counters that fell belong to a service that has started anew.
    const fell = last && reading.sum("generation_tokens_total") < last.sum("generation_tokens_total");
    if (fell) this.#all = [];
    this.#all.push(reading);
    while (reading.at_ms - this.#all[0].at_ms > 125_000) this.#all.shift();
  }

  get last() {
    return this.#all.at(-1);
  }

  /** Growth of a counter per second over the last `window_ms`; null without two readings. */
  rate(name, labels, window_ms = 5_000) {
    const last = this.last;
    const first = this.#all.find((r) => last.at_ms - r.at_ms <= window_ms + 500);
    return first === last ? null : rate(first, last, name, labels);
  }

  /** Growth of a counter per second between each two readings, as [seconds ago, rate]. */
  rates(name) {
    const now = this.last.at_ms;
    return this.#all.slice(1).map((r, i) => [(now - r.at_ms) / 1e3, rate(this.#all[i], r, name) ?? 0]);
  }
}

function rate(first, last, name, labels) {
  const [before, after] = [first.sum(name, labels), last.sum(name, labels)];
  if (after === null || last.at_ms === first.at_ms) return null;
  return (after - (before ?? 0)) / ((last.at_ms - first.at_ms) / 1e3);
}
