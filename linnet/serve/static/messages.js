// The conversation as it is seen.
//
// What: `Messages` draws the turns and the one that is being written, and says which button was pressed on them.
// Why:  what people and models write is text. It becomes text nodes and nothing else: no markup is ever made of it.
// How:  a change of the turns draws all of them anew. Pieces of text are appended to the last text node, together once a
//       frame: laying out a long text for each of 500 tokens a second would leave no time for anything else. The view
//       follows the end unless the reader has scrolled up.

import { copy } from "./copy.js";
import { icon } from "./icons.js";

const NEAR_THE_END = 48; // pixels: closer than that, the view follows

export class Messages {
  #list;
  #frame;
  #do;
  #writing = null; // the text node that grows
  #waiting = ""; // what it grows by at the next frame
  #follows = true;
  #top = 0; // where following has scrolled to

  /**
   * @param {HTMLElement} list  where the messages stand
   * @param {HTMLElement} frame  what scrolls
   * @param {{retry: () => void, edit: (place: number, text: string) => void, end: (seen: boolean) => void}} actions
   *   `edit`: the turn at `place` becomes `text`; `end`: whether the newest is seen
   */
  constructor(list, frame, actions) {
    this.#list = list;
    this.#frame = frame;
    this.#do = actions;
    frame.addEventListener("scroll", () => this.#look());
    new ResizeObserver(() => this.#stay()).observe(frame);
  }

  /** Draw all turns. `busy`: the last one is being written. */
  show(conversation, { busy = false } = {}) {
    const { turns, kind } = conversation;
    this.#list.className = kind === "text" ? "messages prose" : "messages";
    this.#list.setAttribute("aria-busy", String(busy)); // Screen readers read an answer once, when it is whole.
    const drawn = turns.map((turn, place) => this.#message(conversation, turn, place, busy));
    this.#list.replaceChildren(...drawn);
    this.#writing = busy ? this.#list.lastElementChild.querySelector(".text").firstChild : null;
    this.#waiting = "";
    this.#stay();
  }

  /** Another piece of the text that is being written. */
  append(text) {
    if (!this.#waiting) requestAnimationFrame(() => this.#grow());
    this.#waiting += text;
  }

  /** Go to the newest, and follow it. */
  toTheEnd() {
    this.#follows = true;
    this.#stay();
  }

  /** Let the user change the turn at `place`. */
  edit({ turns }, place) {
    const message = this.#list.children[place];
    const area = make("textarea", "edit-text");
    area.value = turns[place].text;
    area.rows = Math.min(12, area.value.split("\n").length + 1);
    area.setAttribute("aria-label", "Your message");
    const before = [...message.childNodes];
    const cancel = () => {
      message.classList.remove("editing");
      message.replaceChildren(...before);
      message.querySelector("button")?.focus();
    };
    const send = () => {
      if (area.value.trim()) this.#do.edit(place, area.value);
    };
    const buttons = make("div", "edit-buttons");
    buttons.append(textButton("Cancel", cancel), textButton("Send", send, "primary"));
    message.classList.add("editing");
    message.replaceChildren(area, buttons);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      }
    });
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #message(conversation, turn, place, busy) {
    const isLast = place === conversation.turns.length - 1;
    const mine = turn.role === "user";
    const message = make("article", "message " + turn.role);
    message.setAttribute("aria-label", mine ? "You" : (turn.model ?? "The model"));
    const text = make("div", "text");
    text.append(document.createTextNode(turn.text)); // Also an empty one, which grows.
    message.append(text);
    if (busy && isLast) {
      message.classList.add("writing");
      return message;
    }
    if (turn.failure) message.append(this.#failure(turn, isLast));
    message.append(this.#actions(conversation, turn, place, { isLast, busy }));
    return message;
  }

  #failure(turn, isLast) {
    const box = make("div", "failure");
    box.setAttribute("role", "alert");
    box.append(make("p", "", turn.failure));
    if (isLast) {
      const retry = textButton("Try again", () => this.#do.retry(), "retry");
      if (turn.wait) countDown(retry, turn.wait);
      box.append(retry);
    }
    return box;
  }

  #actions(conversation, turn, place, { isLast, busy }) {
    const row = make("div", "actions");
    const whole = conversation.kind === "text";
    if (turn.text) row.append(copyButton(whole ? () => conversation.text : () => turn.text));
    if (!busy && (whole ? isLast && conversation.last("user") >= 0 : turn.role === "user")) {
      const own = whole ? conversation.last("user") : place;
      row.append(pictureButton("edit", "Edit", () => this.edit(conversation, own)));
    }
    if (!busy && isLast && turn.role === "assistant" && !turn.failure) {
      row.append(pictureButton("retry", "Write it again", () => this.#do.retry()));
    }
    row.append(make("p", "note", noteOf(turn)));
    return row;
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.#frame;
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR_THE_END;
    this.#do.end(this.#follows);
  }

  #grow() {
    if (!this.#waiting) return; // All has been drawn anew since.
    if (this.#frame.scrollTop < this.#top - 1) this.#follows = false; // Scrolled up; the event of it comes later.
    this.#writing.appendData(this.#waiting);
    this.#waiting = "";
    this.#stay();
  }

  /** Stay at the end if that is where the reader is. */
  #stay() {
    if (this.#follows) this.#frame.scrollTop = this.#frame.scrollHeight;
    else this.#do.end(false);
    this.#top = this.#frame.scrollTop;
  }
}

/** The small words below an answer: how it ended, how much and how fast. */
function noteOf({ role, text, finish, tokens, speed, seed, failure }) {
  if (role !== "assistant" || failure) return "";
  const parts = [];
  if (finish === "length") parts.push(tokens ? `Cut at the limit of ${tokens} tokens` : "Cut at the limit of tokens");
  else if (finish === "stopped") parts.push(text ? "Stopped" : "Stopped before the first word");
  else if (!text) parts.push("The model ends here, without a word");
  if (tokens && finish !== "length") parts.push(tokens === 1 ? "1 token" : `${tokens.toLocaleString("en")} tokens`);
  if (speed) parts.push(`${speed < 10 ? speed.toFixed(1) : Math.round(speed)} tokens/s`);
  if (seed !== undefined) parts.push(`seed ${seed}`);
  return parts.join(" · ");
}

/** Say on the button how long to wait, second by second, and only then let it be pressed. */
function countDown(button, seconds) {
  const label = button.textContent;
  const until = Date.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? `${label} in ${left} s` : label;
    if (left > 0 && (button.isConnected || left === seconds)) setTimeout(tick, 250);
  };
  tick();
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function textButton(label, action, className = "") {
  const button = make("button", className, label);
  button.type = "button";
  button.addEventListener("click", action);
  return button;
}

function pictureButton(name, label, action) {
  const button = textButton("", action, "picture " + name);
  button.setAttribute("aria-label", label);
  button.title = label;
  button.append(icon(name));
  return button;
}

function copyButton(text) {
  const button = pictureButton("copy", "Copy", async () => {
    const worked = await copy(text());
    button.replaceChildren(icon(worked ? "done" : "close"));
    button.setAttribute("aria-label", worked ? "Copied" : "It could not be copied");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", "Copy");
    }, 1500);
  });
  return button;
}
