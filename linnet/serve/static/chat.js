// The chat: puts the parts of the page together.
//
// What: which model and conversation are shown, and the life of an answer: asked for, written, stopped, failed, retried.
// Why:  each part (composer, messages, settings) knows only itself; this is the one place that knows what follows what.
// How:  one answer at a time, `running`. Stopping aborts the request, by which the server stops, too; whatever still
//       arrives belongs to an answer that is no longer the running one and is dropped.

import { Failure, getJson, models, write } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { addIcons } from "./icons.js";
import { listenToKeys } from "./keyboard.js";
import { Messages } from "./messages.js";
import { Panel } from "./panel.js";
import { Settings } from "./settings.js";
import { Welcome } from "./welcome.js";

const KEPT_AS = "linnet-model";
const $ = (id) => document.getElementById(id);

addIcons();
const settings = new Settings($("settings-form"));
const panel = new Panel($("settings"), $("settings-button"));
const welcome = new Welcome($("welcome"), { choose: send, retry: loadModels });
const composer = new Composer($("composer"), { send, stop });
const messages = new Messages($("messages"), $("scroll"), {
  retry,
  edit,
  end: (seen) => { $("to-the-end").hidden = seen; },
});
const conversations = { chat: new Conversation("chat"), text: new Conversation("text") };

let known = []; // the server's models
let model = null; // the chosen one
let conversation = conversations.chat;
let running = null; // the answer that is being written: {controller, conversation, turn}

$("new").addEventListener("click", startAnew);
$("model").addEventListener("change", (event) => choose(event.target.value));
$("to-the-end").addEventListener("click", () => messages.toTheEnd());
listenToKeys({
  stop: () => (running ? stop() : panel.closeOnPhone()),
  editLast: () => {
    const place = conversation.last("user");
    if (place >= 0 && !running) messages.edit(conversation, place);
  },
  focus: () => composer.focus(),
});
loadModels();
showRuns();

async function loadModels() {
  welcome.loading();
  try {
    known = await models();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    welcome.failed(error.message);
    return;
  }
  $("model").replaceChildren(...known.map(({ name }) => new Option(name, name)));
  $("model").disabled = known.length < 2;
  if (!known.length) {
    welcome.failed("The server has no model.");
    return;
  }
  choose(kept());
  if (!matchMedia("(pointer: coarse)").matches) composer.focus(); // On a phone it would open the keyboard.
}

/** The way to the runs, where the server shows some. */
async function showRuns() {
  const { runs } = await getJson("static/page.json").catch(() => ({ runs: false }));
  $("runs").hidden = !runs;
}

function choose(name) {
  stop();
  model = known.find((one) => one.name === name) ?? known[0];
  $("model").value = model.name;
  try {
    sessionStorage.setItem(KEPT_AS, model.name);
  } catch {
    // Then it is chosen until the page is loaded again.
  }
  conversation = conversations[model.chat ? "chat" : "text"];
  settings.takesSystem = model.chat && model.roles.includes("system");
  composer.hint = model.chat ? "Message" : "Begin a text, or leave empty and let it go on";
  draw();
  messages.toTheEnd();
}

function kept() {
  try {
    return sessionStorage.getItem(KEPT_AS);
  } catch {
    return null;
  }
}

function draw() {
  const begun = conversation.turns.length > 0;
  welcome.show(begun ? null : model);
  $("new").disabled = !begun;
  composer.busy = running !== null;
  messages.show(conversation, { busy: running?.conversation === conversation });
  document.title = model ? `${model.name} · Linnet` : "Linnet";
}

function send(text) {
  if (!model || running || (model.chat && !text.trim())) return;
  if (settings.wrong) {
    panel.open();
    settings.wrong.focus();
    return;
  }
  if (model.chat) conversation.add({ role: "user", text: text.trim() });
  else if (text) conversation.add({ role: "user", text: withSeam(conversation.text, text) });
  composer.text = "";
  answer(0);
}

/** A word that is typed behind a word is a new one. */
function withSeam(before, text) {
  return /\S$/.test(before) && /^[\p{L}\p{N}"'(]/u.test(text) ? " " + text : text;
}

function retry() {
  const place = conversation.last("assistant");
  if (running || place < 0) return;
  const { attempt, failure } = conversation.turns[place];
  conversation.cut(place);
  answer(failure ? attempt : attempt + 1);
}

function edit(place, text) {
  stop();
  conversation.cut(place);
  conversation.add({ role: "user", text: model.chat ? text.trim() : text });
  answer(0);
  composer.focus();
}

function startAnew() {
  stop();
  conversation.cut(0);
  draw();
  composer.focus();
}

/** Let the model write the next turn. `attempt`: how many answers were thrown away before this one. */
async function answer(attempt) {
  const [path, said] = conversation.request(settings.system && model.roles.includes("system") ? settings.system : "");
  const options = settings.request(attempt);
  const turn = conversation.add({ role: "assistant", text: "", model: model.name, seed: options.seed, attempt });
  const mine = { controller: new AbortController(), conversation, turn };
  running = mine;
  $("status").textContent = model.loaded ? "Writing" : `Loading ${model.name}: this takes a moment`;
  draw();
  messages.toTheEnd();
  try {
    await listen(mine, write(path, { model: model.name, ...said, ...options }, mine.controller.signal));
    turn.finish ??= "stop";
  } catch (error) {
    if (running !== mine) return;
    if (!(error instanceof Failure)) throw error;
    Object.assign(turn, { finish: "failed", failure: error.message, wait: error.wait });
  } finally {
    if (running === mine) settle();
  }
}

/** Take in what is written, as long as it is wanted. */
async function listen(mine, pieces) {
  const { turn } = mine;
  let first = 0;
  let last = 0;
  for await (const { text, finish, usage } of pieces) {
    if (running !== mine) return;
    if (text) {
      last = performance.now();
      if (!first) {
        first = last;
        known.find(({ name }) => name === turn.model).loaded = true;
        $("status").textContent = "Writing";
      }
      turn.text += text;
      messages.append(text);
    }
    turn.finish = finish ?? turn.finish;
    turn.tokens = usage?.completion_tokens ?? turn.tokens;
  }
  if (turn.tokens > 4 && last > first) turn.speed = (1000 * (turn.tokens - 1)) / (last - first);
}

function stop() {
  if (!running) return;
  const { controller, turn } = running;
  turn.finish = "stopped";
  controller.abort();
  settle();
}

/** The answer is over, one way or the other. */
function settle() {
  running.conversation.keep();
  running = null;
  $("status").textContent = "";
  draw();
}

addEventListener("pagehide", () => conversation.keep());
