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

/** The whole answer to a form; `onPiece` gets its text as it comes. Throws Error with a `status`. */
export async function ask(form, onPiece) {
  form.set("stream", "true");
  const response = await fetch(`${base}/v1/audio-chat`, { method: "POST", headers: headers(), body: form });
  if (!response.ok) throw failure(response.status, await response.json().catch(() => ({})));
  let whole = null;
  for await (const event of events(response.body)) {
    if (event.error) throw failure(response.status, event);
    if (event.delta) onPiece(event.delta);
    if ("answer" in event) whole = event;
  }
  if (!whole) throw new Error("The connection broke before the answer was whole.");
  return whole;
}

function failure(status, body) {
  return Object.assign(new Error(body.error?.message ?? `The server answered ${status}.`), { status });
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split("\n\n");
    text = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}
