// The server behind this page; a key, where one is needed, stays in this module's memory.

export const base = new URL("..", location.href).href.replace(/\/$/, "");
let key = "";

export function useKey(text) { key = text.trim(); }
export function hasKey() { return key !== ""; }

function headers() { return key ? { authorization: `Bearer ${key}` } : {}; }

/** {status, body} of a GET. */
export async function get(path) {
  const response = await fetch(base + path, { headers: headers(), cache: "no-store" });
  return { status: response.status, body: await response.json().catch(() => ({})) };
}

/** The whole answer to a form; `onPiece` gets its text as it comes. Throws Error with a `status` and a `code`. */
export async function ask(form, onPiece, signal) {
  form.set("stream", "true");
  const response = await fetch(`${base}/v1/audio-chat`, { method: "POST", headers: headers(), body: form, signal });
  if (!response.ok) throw failure(response.status, await response.json().catch(() => ({})));
  let whole = null;
  for await (const event of events(response.body, signal)) {
    if (event.error) throw failure(response.status, event);
    if (event.delta) onPiece(event.delta);
    if ("answer" in event) whole = event;
  }
  if (!whole) throw new Error("The connection broke before the answer was whole.");
  return whole;
}

function failure(status, body) {
  const { message = `The server answered ${status}.`, code } = body.error ?? {};
  return Object.assign(new Error(message), { status, code });
}

async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    signal.throwIfAborted(); // what had come before the abort is not read any more
    if (done) return;
    text += value;
    const lines = text.split("\n\n");
    text = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}
