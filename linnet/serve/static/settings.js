// The settings: what is sent along with each request.
//
// What: reads the numbers and the system text out of the form, and keeps them for this tab.
// Why:  a field that is empty is not sent, so the server's own choice holds; a wrong one is marked where it stands.
// How:  the form's own checks (min, max, step) decide what is wrong. A slider beside a number is the same value twice.

const KEPT_AS = "linnet-settings";

export class Settings {
  #form;
  #numbers;

  /** @param {HTMLFormElement} form */
  constructor(form) {
    this.#form = form;
    this.#numbers = [...form.querySelectorAll("input[type=number]")];
    for (const input of this.#fields()) input.value = kept()[input.name] ?? input.value;
    form.addEventListener("input", (event) => this.#follow(event.target));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => this.#show())); // after the fields have their values back
    this.#show();
  }

  /** The system text, stripped; empty where there is none. */
  get system() {
    return this.#form.elements.system.value.trim();
  }

  /** The first field with a value that cannot be sent, or undefined. */
  get wrong() {
    return this.#numbers.find((input) => !input.checkValidity());
  }

  /** Whether the model knows a system text: else the field is not shown. */
  set takesSystem(takes) {
    this.#form.elements.system.closest(".field").hidden = !takes;
  }

  /** The numbers by the API's names. `attempt`: how often this was tried before; the same seed would write the same. */
  request(attempt) {
    const filled = this.#numbers.filter((input) => input.value !== "");
    const request = Object.fromEntries(filled.map((input) => [input.name, input.valueAsNumber]));
    if ("seed" in request) request.seed += attempt;
    return request;
  }

  #fields() {
    return [...this.#numbers, this.#form.elements.system];
  }

  #follow(changed) {
    if (changed.type === "range") this.#form.elements[changed.dataset.of].value = changed.value;
    this.#show();
  }

  #show() {
    for (const slider of this.#form.querySelectorAll("input[type=range]")) {
      const number = this.#form.elements[slider.dataset.of];
      if (number.value !== "") slider.value = number.value;
    }
    for (const input of this.#numbers) {
      const error = document.getElementById(input.name + "-error");
      const wrong = !input.checkValidity();
      error.textContent = wrong ? `From ${input.min} to ${input.max}${input.step === "1" ? ", a whole number" : ""}.` : "";
      input.setAttribute("aria-invalid", String(wrong));
    }
    try {
      const values = Object.fromEntries(this.#fields().map((input) => [input.name, input.value]));
      sessionStorage.setItem(KEPT_AS, JSON.stringify(values));
    } catch {
      // Then they hold until the page is loaded again.
    }
  }
}

function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT_AS)) ?? {};
  } catch {
    return {};
  }
}
