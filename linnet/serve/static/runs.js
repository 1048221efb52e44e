// The runs, live: puts the parts of the page together.
//
// What: asks for the list and for the chosen run every two seconds, and shows what is new.
// Why:  one sees at a glance whether a training learns, and which of several was better.
// How:  only while the page can be seen. The chosen run stands in the address (#name), so that a link leads to it and the
//       way back is the browser's. Of a long run only what has come since is asked for; once it has grown by a fifth, all
//       of it, as then other points and another mean are drawn.

import { Failure, getJson } from "./api.js";
import { Curves } from "./curves.js";
import { addIcons } from "./icons.js";
import { RunList } from "./runlist.js";
import { Samples } from "./samples.js";
import { showHead } from "./runhead.js";

const EVERY = 2000; // milliseconds
const GROWN = 1.2;
const $ = (id) => document.getElementById(id);

addIcons();
const list = new RunList($("list"));
const curves = new Curves($("axes"));
const samples = new Samples($("samples"));
let shown = null; // the run that is drawn: {name, next, steps: how many the points were chosen from}
let due = 0; // the timer
let asking = null; // AbortController of the question on its way

addEventListener("hashchange", () => look());
document.addEventListener("visibilitychange", () => look());
look();

/** Ask now, and then again and again. */
async function look() {
  clearTimeout(due);
  asking?.abort();
  if (document.hidden) return;
  const mine = (asking = new AbortController());
  try {
    await ask(mine.signal);
    $("trouble").hidden = true;
  } catch (error) {
    if (mine.signal.aborted) return; // Another question has taken its place.
    if (!(error instanceof Failure)) throw error;
    $("trouble").textContent = error.message;
    $("trouble").hidden = false;
    if (error.status === 401) return; // The key was not given: asking every two seconds would be a nuisance.
    if (error.status === 404) shown = null; // The run has been removed.
  }
  if (!mine.signal.aborted) due = setTimeout(look, EVERY);
}

async function ask(signal) {
  const { runs, hint } = await getJson("runs/data", signal);
  const wanted = wantedName();
  const chosen = runs.find(({ name }) => name === wanted) ?? (wanted ? null : newest(runs));
  list.show(runs, chosen?.name);
  $("empty").hidden = chosen != null;
  $("run").hidden = !chosen;
  if (!chosen) {
    shown = null;
    $("empty").textContent = runs.length ? `There is no run ${wanted} here (any more).` : hint;
    return;
  }
  if (shown?.name !== chosen.name) shown = { name: chosen.name, next: "", steps: 0 };
  const answer = await getJson(`runs/data/${encodeURIComponent(chosen.name)}?after=${shown.next}`, signal);
  take(answer);
}

/** Show what is new of the chosen run. */
function take(answer) {
  if (answer.whole) shown.steps = answer.steps;
  shown.next = answer.steps > GROWN * Math.max(shown.steps, 20) ? "" : answer.next;
  showHead(answer.run);
  document.title = `${answer.run.name}: ${answer.run.state} · Linnet`;
  const any = curves.take(answer.curves, { whole: answer.whole });
  $("no-rows").hidden = any;
  $("figures").hidden = $("axes").hidden = !any;
  curves.draw();
  if (answer.samples) samples.show(answer);
}

function wantedName() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return location.hash.slice(1);
  }
}

/** Where none is chosen: one that is running, else the first. */
function newest(runs) {
  return runs.find(({ state }) => state === "running") ?? runs[0];
}
