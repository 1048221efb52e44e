// Where one types.
//
// Enter sends, Shift+Enter makes a new line. While an answer is written, the button stops it and Enter waits: what is
// typed meanwhile stays.

import { icon } from "./icons.js";

export class Composer {
  #area;
  #button;
  #busy = false;

  /** @param {{send: (text: string) => void, stop: () => void}} actions */
  constructor(form, { send, stop }) {
    this.#area = form.querySelector("textarea");
    this.#button = form.querySelector("button");
    form.addEventListener("submit", (event) => event.preventDefault());
    this.#button.addEventListener("click", () => (this.#busy ? stop() : send(this.#area.value)));
    this.#area.addEventListener("input", () => this.#fit());
    this.#area.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#busy) send(this.#area.value);
    });
    this.busy = false;
  }

  /** Whether an answer is being written: then the button stops it. */
  set busy(busy) {
    this.#busy = busy;
    const label = busy ? "Stop" : "Send";
    this.#button.replaceChildren(icon(busy ? "stop" : "send"));
    this.#button.setAttribute("aria-label", label);
    this.#button.title = busy ? "Stop (Esc)" : "Send (Enter)";
    this.#button.classList.toggle("stopping", busy);
  }

  set hint(text) {
    this.#area.placeholder = text;
  }

  set text(text) {
    this.#area.value = text;
    this.#fit();
  }

  focus() {
    this.#area.focus();
  }

  /** As high as its text; style.css says where it ends. */
  #fit() {
    this.#area.style.height = "auto";
    this.#area.style.height = this.#area.scrollHeight + "px";
  }
}
