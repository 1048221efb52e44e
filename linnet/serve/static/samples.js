// What the model wrote at each evaluation, from the first to the newest. The slider stays at the newest unless it is moved.

export class Samples {
  #box;
  #slider;
  #evaluations = [];
  #continued = true;

  /** @param {HTMLElement} box  #samples */
  constructor(box) {
    this.#box = box;
    this.#slider = box.querySelector("input");
    this.#slider.addEventListener("input", () => this.#draw());
  }

  /** @param {{samples: {step: number, samples: string[][]}[], evaluations: number, continued: boolean}} answer oldest first */
  show({ samples, evaluations, continued }) {
    const before = this.#evaluations[this.#slider.value]?.step;
    const atTheEnd = Number(this.#slider.value) === this.#evaluations.length - 1;
    this.#evaluations = samples;
    this.#continued = continued;
    this.#box.hidden = !samples.length;
    if (!samples.length) return;
    this.#slider.max = samples.length - 1;
    const same = samples.findIndex(({ step }) => step === before);
    this.#slider.value = atTheEnd || same < 0 ? samples.length - 1 : same;
    this.#slider.parentElement.hidden = samples.length < 2;
    this.#box.querySelector("#how-many").textContent =
      evaluations > samples.length ? `${samples.length} of ${evaluations} evaluations` : "";
    this.#draw();
  }

  #draw() {
    const { step, samples } = this.#evaluations[this.#slider.value];
    const said = `step ${step.toLocaleString("en")}`;
    this.#box.querySelector("output").value = said;
    this.#slider.setAttribute("aria-valuetext", said);
    this.#box.querySelector("#written").replaceChildren(...samples.map(([prompt, text]) => {
      const element = document.createElement("div");
      element.className = "text";
      const begun = document.createElement("span");
      begun.className = "prompt";
      begun.textContent = prompt;
      element.append(begun);
      if (prompt && !this.#continued) element.append(document.createElement("br"));
      element.append(document.createTextNode(this.#continued ? text : text.trimStart()));
      return element;
    }));
  }
}
