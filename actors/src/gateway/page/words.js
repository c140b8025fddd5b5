// Numbers and elements as people read them.

/** The element with this id. */
export const at = (id) => document.getElementById(id);

/** Sets a text, if it changed: screen readers and selections are not disturbed for nothing. */
export function say(target, text) {
  const element = typeof target === "string" ? at(target) : target;
  if (element.textContent !== text) element.textContent = text;
}

/** A new element with attributes and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** A new element of a drawing. */
export function draw(tag, attributes = {}, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** A number with about three digits; a dash for none. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toLocaleString("en", { maximumFractionDigits: value === 0 ? 0 : digits });
}

/** A share of 1 in per cent; a dash for none. */
export function percent(value) {
  return value === null || !Number.isFinite(value) ? "–" : `${Math.round(100 * value)} %`;
}

/** Bytes in MiB or GiB. */
export function bytes(value) {
  const mib = value / (1 << 20);
  return mib >= 1024 ? `${number(mib / 1024)} GiB` : `${number(mib)} MiB`;
}

/** "1 job", "2 jobs". */
export function count(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
}
