// What the page asks of the service. Every answer that is not a success becomes a `Refused` with words for a person.

const KEY = "outrider-api-key";

/** An answer that is not a success. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Keeps the key for this tab; an empty one is forgotten. */
export function useKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Whether a key was given. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

async function send(path, { method = "GET", body, text: plain, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  if (plain !== undefined) headers["content-type"] = "application/toml";
  const sent = body === undefined ? plain : JSON.stringify(body);
  const answer = await fetch(path, { method, headers, body: sent, signal, cache: "no-store" });
  if (answer.ok) return answer;
  if (answer.status === 401 || answer.status === 403) {
    dispatchEvent(new CustomEvent("key-wanted", { detail: answer.status }));
  }
  throw new Refused(answer.status, await reason(answer));
}

async function reason(answer) {
  try {
    const { error, reason: why } = await answer.json();
    return error?.message ?? why ?? answer.statusText;
  } catch {
    return answer.statusText || `status ${answer.status}`;
  }
}

/** The JSON that a route answers. */
export async function json(path, options) {
  return (await send(path, options)).json();
}

/** The text that a route answers. */
export async function text(path, options) {
  return (await send(path, options)).text();
}

/** The objects of a stream of server-sent events, until `[DONE]`. */
export async function* events(path, options) {
  const answer = await send(path, options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(500, event.error.message);
      yield event;
    }
  }
}
