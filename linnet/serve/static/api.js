// What the page asks of the server.
//
// What: `getJson` for data, `models` for what can be talked to, `write` for a stream of text.
// Why:  everything that can go wrong on the way ends as one `Failure` with one sentence for people.
// How:  addresses are relative, so that the page works behind a proxy that puts it into a folder. A 401 asks for the key
//       once and tries again.

import { askForKey, keyHeaders } from "./key.js";
import { events } from "./sse.js";

/** Something that a person is told. `wait`: seconds until another try makes sense, where the server said so. */
export class Failure extends Error {
  constructor(sentence, { status = 0, wait = 0 } = {}) {
    super(sentence);
    this.status = status;
    this.wait = wait;
  }
}

/** The JSON at `path`. Throws Failure; an abort stays an AbortError. */
export async function getJson(path, signal) {
  const response = await ask(path, { signal });
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server sent something that is not JSON.");
  }
}

/** The models, as {name, chat, roles, window, loaded}. Throws Failure. */
export async function models() {
  const list = (await getJson("v1/models")).data ?? [];
  return list.map(({ id, linnet = {} }) => ({
    name: id,
    chat: linnet.chat ?? true,
    roles: linnet.roles ?? ["system", "user", "assistant"],
    window: linnet.n_positions ?? 0,
    loaded: linnet.loaded ?? true,
  }));
}

/**
 * Let the model write: pieces {text}, then {finish} (why it ended) and {usage}, as they come.
 * Throws Failure; an abort stays an AbortError. `request`: the body for `path`, but for what makes it a stream.
 */
export async function* write(path, request, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const headers = { "Content-Type": "application/json" };
  const response = await ask(path, { method: "POST", headers, body, signal });
  let whole = false;
  try {
    for await (const data of events(response.body)) {
      whole ||= data === "[DONE]";
      if (!whole) yield* pieces(data);
    }
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw brokenOff();
  }
  if (!whole) throw brokenOff();
}

function* pieces(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    throw new Failure("The server sent something that is not JSON.");
  }
  if (event.error) throw new Failure(sentence(event.error.message) ?? "The server failed in the middle of the text.");
  const choice = event.choices?.[0];
  const text = choice?.delta?.content ?? choice?.text;
  if (text) yield { text };
  if (choice?.finish_reason) yield { finish: choice.finish_reason };
  if (event.usage) yield { usage: event.usage };
}

function brokenOff() {
  return new Failure("The text broke off: the connection to the server was lost.");
}

/** The response of a request that went well. */
async function ask(path, options) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...options.headers, ...keyHeaders() } });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The server does not answer. Is linnet serve still running?");
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    if (!(await askForKey())) throw await refusal(response);
  }
}

async function refusal(response) {
  const { status } = response;
  const said = await response.json().catch(() => null);
  const wait = Math.ceil(Number(response.headers.get("Retry-After"))) || 0;
  const fallback = status === 429 ? "The server is busy." : `The server answered with ${status}.`;
  return new Failure(sentence(said?.error?.message) ?? sentence(said?.detail) ?? fallback, { status, wait });
}

/** `value` if it can be shown as a sentence. */
function sentence(value) {
  return typeof value === "string" && value.trim() ? value.trim().slice(0, 1000) : null;
}
