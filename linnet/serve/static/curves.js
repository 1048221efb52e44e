// The curves, drawn by plotly, which runs.html loads as a script of its own.
//
// What: `Curves` holds the points that have come so far and draws them against steps, tokens or time.
// Why:  a new point must not undo what the reader has zoomed into, nor draw the page's colours wrong after the switch.
// How:  another run or another axis is another revision. Within one, plotly keeps what the reader did to the y axis; the
//       x axis, whose end moves with the training, is left alone once it is not as it was set here. Colours of the lines
//       are those of linnet/track/report/curves.py, all others are read from the page.

const EACH_STEP = "#56B4E9";
const TRAINING = "#3B8FD1";
const HELD_OUT = "#E0662C";
const AXES = {
  step: { title: "training step", scale: 1, tickformat: ",~f" },
  tokens: { title: "tokens", scale: 1, tickformat: "~s" },
  time: { title: "training time (s)", scale: 1, tickformat: ",~f" },
};
const SMALL = { // formats: under the pointer, at the axis
  learning_rate: [".3~g", "~g"], grad_norm: [".3~f", "~g"], tokens_per_s: [",.0f", "~s"],
};
const LOGARITHMIC_FROM = 2; // largest / smallest loss
const MOST_MARKED = 40; // evaluations that are drawn as dots
const BUTTONS = ["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]; // plotly's others upload figures

export class Curves {
  #axes;
  #curves = {};
  #revision = 0;
  #drawn = new WeakMap(); // figure: its revision
  #set = new Set(); // the ranges that were set here

  /** @param {HTMLFieldSetElement} axes  the choice of the axis */
  constructor(axes) {
    this.#axes = axes;
    axes.addEventListener("change", () => {
      this.#viewAnew();
      this.draw();
    });
    addEventListener("themechange", () => this.draw());
  }

  /** Take in curves {name: {step, tokens, time, y}}: all points, or those that came later. Whether there are any. */
  take(curves, { whole }) {
    if (whole) {
      const first = (points) => points?.loss?.time[0] ?? points?.held_out?.time[0];
      if (first(curves) !== first(this.#curves)) this.#viewAnew(); // another run
      this.#curves = curves;
    } else {
      for (const [name, points] of Object.entries(curves)) {
        const before = (this.#curves[name] ??= { step: [], tokens: [], time: [], y: [] });
        for (const key of Object.keys(before)) before[key].push(...points[key]);
      }
    }
    return Object.values(this.#curves).some(({ y }) => y.length);
  }

  draw() {
    if (!globalThis.Plotly || !Object.values(this.#curves).some(({ y }) => y.length)) return;
    const key = this.#axes.querySelector(":checked").value;
    const axis = key === "time" ? timeAxis(this.#longest("time")) : AXES[key];
    const stop = Math.max(this.#longest(key), 1) / axis.scale;
    const touched = matchMedia("(pointer: coarse)").matches; // Dragging must scroll the page there.
    const xaxis = {
      title: { text: axis.title, standoff: 8 }, tickformat: axis.tickformat, nticks: 9,
      unifiedhovertitle: { text: axis.title + " %{x}" },
      hoverformat: key === "time" ? ",.2~f" : ",.0f",
    };
    const template = { layout: pageColours() };
    for (const [name, traces, yaxis] of this.#figures(key, axis.scale)) {
      const graph = document.getElementById("figure-" + name);
      const large = name === "loss";
      const legend = large && traces.length > 1;
      const small = { nticks: 4, tickangle: 0, title: undefined };
      const layout = {
        template, xaxis: { ...xaxis, ...(large ? {} : small) }, yaxis: { automargin: true, nticks: large ? 7 : 5, ...yaxis },
        showlegend: legend, hovermode: "x unified", uirevision: this.#revision, autosize: true,
        legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
        margin: { l: 48, r: 16, t: legend ? 40 : 10, b: large ? 44 : 26 }, dragmode: touched ? false : "zoom",
      };
      layout.xaxis.range = this.#range(graph, [-0.01 * stop, 1.02 * stop]);
      graph.parentElement.hidden = !traces.length;
      Plotly.react(graph, traces, layout, {
        displaylogo: false, responsive: true, displayModeBar: touched || !large ? false : "hover", plotlyServerURL: "",
        modeBarButtons: [BUTTONS], toImageButtonOptions: { filename: name },
      });
    }
  }

  #viewAnew() {
    this.#revision += 1;
    this.#set.clear();
  }

  /** Where the x axis begins and ends: as it is where the reader has zoomed, else as `wanted`. */
  #range(graph, wanted) {
    const now = graph.layout?.xaxis.range;
    const zoomed = now && this.#drawn.get(graph) === this.#revision && !this.#set.has(String(now));
    this.#drawn.set(graph, this.#revision);
    this.#set.add(String(wanted));
    return zoomed ? now.slice() : wanted;
  }

  /** [name, traces, y axis] of each figure. */
  #figures(key, scale) {
    const line = (name, style) => {
      const points = this.#curves[name];
      if (!points?.y.some((y) => y !== null)) return [];
      const x = points[key].map((place) => (place === null ? null : place / scale));
      return [{ type: "scatter", mode: "lines", connectgaps: false, x, y: points.y, ...style }];
    };
    const mean = this.#curves.loss_mean;
    const marks = (this.#curves.held_out?.y.length ?? 0) <= MOST_MARKED;
    const loss = [
      ...line("loss", mean
        ? { name: "each step", line: { color: EACH_STEP, width: 0.9 } }
        : { name: "training", line: { color: TRAINING, width: 2.2 } }),
      ...line("loss_mean", { name: "training, moving mean", line: { color: TRAINING, width: 2.2 } }),
      ...line("held_out", {
        name: "held out", mode: marks ? "lines+markers" : "lines", marker: { size: 6 },
        line: { color: HELD_OUT, width: 2 },
      }),
    ];
    const small = Object.entries(SMALL).map(([name, [hoverformat, tickformat]]) => [
      name, line(name, { line: { color: TRAINING, width: 2 } }), { rangemode: "tozero", hoverformat, tickformat },
    ]);
    return [["loss", loss, lossAxis(loss)], ...small];
  }

  #longest(key) {
    let longest = 0;
    for (const points of Object.values(this.#curves)) {
      for (const place of points[key]) longest = Math.max(longest, place ?? 0);
    }
    return longest;
  }
}

function lossAxis(traces) {
  const values = traces.flatMap(({ y }) => y).filter((y) => y !== null);
  let [low, high] = [Infinity, 0];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (!(low > 0 && high > LOGARITHMIC_FROM * low)) return { hoverformat: ".4f" };
  const wide = high >= 10 * low; // Over a whole decade the labels of all digits touch: 1, 2 and 5 suffice.
  return { type: "log", tickformat: "~g", hoverformat: ".4f", minorloglabels: "complete", dtick: wide ? "D2" : null };
}

function timeAxis(seconds) {
  const [unit, scale] = seconds >= 7200 ? ["h", 3600] : seconds >= 120 ? ["min", 60] : ["s", 1];
  return { ...AXES.time, title: `training time (${unit})`, scale };
}

/** The page's colours, resolved: a custom property alone is still the text light-dark(...). */
function pageColours() {
  const probe = document.createElement("i");
  document.body.append(probe);
  const colour = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const [card, ink, faint, soft] = ["--card", "--ink", "--faint", "--line"].map(colour);
  probe.remove();
  const axis = { gridcolor: soft, zerolinecolor: soft, linecolor: soft, spikecolor: faint, spikethickness: 1, spikedash: "dot" };
  const none = "rgba(0,0,0,0)";
  return {
    paper_bgcolor: none, plot_bgcolor: none, font: { family: "system-ui, sans-serif", size: 13, color: faint },
    legend: { font: { color: ink }, bgcolor: none },
    hoverlabel: { namelength: -1, bgcolor: card, bordercolor: soft, font: { color: ink } },
    modebar: { bgcolor: none, color: faint, activecolor: ink },
    xaxis: { ...axis, showgrid: false, showline: true, ticks: "outside", tickcolor: soft },
    yaxis: { ...axis, zeroline: false },
  };
}
