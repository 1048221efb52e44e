// The panel of settings: beside the chat where there is room, over it on a phone.
//
// It is no dialog: one can change a setting and go on talking.

const PHONE = "(max-width: 52rem)"; // as in style.css

export class Panel {
  #panel;
  #button;

  /** @param {HTMLElement} panel  has one button of class `close` */
  constructor(panel, button) {
    this.#panel = panel;
    this.#button = button;
    button.addEventListener("click", () => (panel.hidden ? this.open() : this.close()));
    panel.querySelector(".close").addEventListener("click", () => this.close());
    this.#say();
  }

  open() {
    this.#panel.hidden = false;
    this.#say();
    this.#panel.querySelector("h2").focus();
  }

  close() {
    this.#panel.hidden = true;
    this.#say();
    this.#button.focus();
  }

  /** Close it where it hides the chat. */
  closeOnPhone() {
    if (!this.#panel.hidden && matchMedia(PHONE).matches) this.close();
  }

  #say() {
    this.#button.setAttribute("aria-expanded", String(!this.#panel.hidden));
  }
}
