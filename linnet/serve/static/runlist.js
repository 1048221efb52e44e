// The list of the runs: name, state, how far and how good. Each is a link to itself, #name.

export class RunList {
  #list;
  #drawn = "";

  /** @param {HTMLUListElement} list */
  constructor(list) {
    this.#list = list;
  }

  show(runs, chosen) {
    const now = JSON.stringify([runs, chosen]);
    if (now === this.#drawn) return; // Else the focus would be lost every two seconds.
    this.#drawn = now;
    const focused = document.activeElement?.closest("#list a")?.hash;
    this.#list.replaceChildren(...runs.map((run) => item(run, run.name === chosen)));
    if (focused) [...this.#list.querySelectorAll("a")].find(({ hash }) => hash === focused)?.focus();
  }
}

function item(run, chosen) {
  const link = document.createElement("a");
  link.href = "#" + encodeURIComponent(run.name);
  if (chosen) link.setAttribute("aria-current", "page");
  link.append(
    part("span", "run-name", run.name),
    part("span", "state " + run.state.split(" ")[0], run.state),
    progress(run),
    part("span", "faint", steps(run)),
    part("span", "loss", run.validation_loss !== null ? run.validation_loss.toFixed(3) : ""),
  );
  if (run.validation_loss !== null) link.lastChild.title = "best held-out loss";
  const line = document.createElement("li");
  line.append(link);
  return line;
}

function steps({ step, steps }) {
  return step.toLocaleString("en") + (typeof steps === "number" ? ` of ${steps.toLocaleString("en")}` : "");
}

function progress({ step, steps }) {
  const bar = part("progress", "");
  bar.max = 1;
  bar.value = typeof steps === "number" && steps > 0 ? Math.min(1, step / steps) : 0;
  bar.setAttribute("aria-hidden", "true"); // The numbers beside it say the same.
  return bar;
}

function part(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}
