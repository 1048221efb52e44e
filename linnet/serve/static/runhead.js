// What is above the curves: the run's name, state and headline numbers, as on its report.html.

const $ = (id) => document.getElementById(id);

/** @param {object} run  a row of linnet runs --json, see linnet/track/runs.py */
export function showHead(run) {
  $("name").textContent = run.name;
  $("state").textContent = run.state;
  $("state").className = "state " + run.state.split(" ")[0];
  const from = run.parent ? `from ${run.parent}` : "from scratch";
  $("about").textContent = run.recipe ? `recipe ${run.recipe}, ${from}` : "";
  $("problems").hidden = !run.problems.length;
  $("problems").replaceChildren(...run.problems.map((sentence) => make("p", "", sentence)));
  $("numbers").replaceChildren(...numbersOf(run).map(([name, value, note]) => {
    const box = make("div");
    box.append(make("dt", "", name), make("dd", "value", value), make("dd", "", note || "\u00a0"));
    return box;
  }));
}

function numbersOf(run) {
  const numbers = [["steps", count(run.step), typeof run.steps === "number" ? `of ${count(run.steps)}` : ""]];
  if (run.validation_loss !== null) {
    numbers.push(["held-out loss", run.validation_loss.toFixed(3), `best, at step ${count(run.best_step)}`]);
  }
  if (run.training_loss !== null) numbers.push(["training loss", run.training_loss.toFixed(3), "recent mean"]);
  if (run.tokens !== null) numbers.push(["tokens", short(run.tokens), count(run.tokens)]);
  if (run.time_s) numbers.push(["training time", duration(run.time_s), remaining(run)]);
  if (run.tokens_per_s) numbers.push(["tokens/s", count(Math.round(run.tokens_per_s)), "mean"]);
  return numbers;
}

function remaining({ state, step, steps, time_s: seconds }) {
  if (state !== "running" || typeof steps !== "number" || !step || step >= steps) return "steps only";
  return `about ${duration((seconds / step) * (steps - step))} left`;
}

function count(number) {
  return number.toLocaleString("en");
}

function short(number) {
  return Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(number);
}

/** A time for people, in at most two units. */
function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  const minutes = Math.floor(whole / 60);
  if (whole < 86_400) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor(minutes / 60) % 24} h`;
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}
