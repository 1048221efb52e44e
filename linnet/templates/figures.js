// Draws the figures of a page with plotly: puts in the chosen axis and the colours of the page, light or dark.
// The figures are plotly's own JSON, see linnet/track/report/curves.py.
"use strict";

const page = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const TOUCHED = ["pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]; // named: one of plotly's own would upload the figure
const PRINTED_WIDTH = 680; // pixels; A4 between its margins

function colours() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {
    gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"),
    spikecolor: colour("--faint"), spikethickness: 1, spikedash: "dot",
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: colour("--faint") },
    legend: { font: { color: colour("--ink") }, bgcolor: "rgba(0,0,0,0)" },
    hoverlabel: { namelength: -1, bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--faint"), activecolor: colour("--ink") },
    xaxis: { ...axis, showgrid: false, showline: true, ticks: "outside", tickcolor: colour("--line") },
    yaxis: { ...axis, zeroline: false },
  };
}

function draw(width) {
  const key = document.querySelector("input[name=axis]:checked").value;
  const chosen = page.axes.find((axis) => axis.key === key);
  const layout = { template: { layout: colours() } };
  const touched = matchMedia("(pointer: coarse)").matches; // dragging must scroll the page there
  for (const figure of page.figures) {
    const data = figure.data.map((trace, index) => ({ ...trace, x: figure.x[key][index] }));
    const xaxis = {
      title: { text: chosen.title, standoff: 8 }, tickformat: chosen.tickformat, nticks: 9, dtick: chosen.dtick,
      range: chosen.range.slice(), unifiedhovertitle: { text: chosen.title + " %{x}" }, hoverformat: chosen.hoverformat,
    };
    const graph = document.getElementById("figure-" + figure.id);
    const size = width ? { width: width, height: graph.clientHeight, autosize: false } : { autosize: true };
    Plotly.react(
      graph, data,
      { ...structuredClone(figure.layout), ...layout, ...size, xaxis: xaxis, dragmode: touched ? false : "zoom" },
      {
        displaylogo: false, responsive: true, displayModeBar: touched ? true : "hover",
        modeBarButtons: touched ? [TOUCHED] : [["toImage"], ["zoom2d", ...TOUCHED]],
        plotlyServerURL: "",
        toImageButtonOptions: { filename: figure.id },
      },
    );
  }
}

// Plotly labels all digits of a logarithmic axis. Over a whole decade they touch: 1, 2 and 5 suffice.
function thinOutLabels(graph) {
  const axis = graph.layout.yaxis;
  const dtick = axis.type === "log" && axis.range[1] - axis.range[0] >= 1 ? "D2" : null;
  if ((axis.dtick ?? null) !== dtick) Plotly.relayout(graph, { "yaxis.dtick": dtick });
}

function slide(samples) {
  const slider = samples.querySelector(".slider");
  const input = slider.querySelector("input");
  const evaluations = [...samples.querySelectorAll(".evaluation")].reverse(); // oldest first
  const show = () => {
    evaluations.forEach((evaluation, index) => { evaluation.hidden = index !== Number(input.value); });
    slider.querySelector("output").value = evaluations[input.value].querySelector("h3").textContent;
  };
  samples.classList.add("sliding");
  slider.hidden = evaluations.length < 2;
  input.addEventListener("input", show);
  show();
}

const samples = document.getElementById("samples");
if (samples) slide(samples);
if (page.figures.length) {
  draw();
  for (const figure of page.figures) {
    const graph = document.getElementById("figure-" + figure.id);
    graph.on("plotly_afterplot", () => thinOutLabels(graph));
    thinOutLabels(graph);
  }
  document.querySelector(".axes").addEventListener("change", () => draw());
  dark.addEventListener("change", () => draw());
}
addEventListener("beforeprint", () => {
  document.documentElement.classList.add("printing");
  for (const details of document.querySelectorAll("details")) details.open = true;
  if (page.figures.length) draw(PRINTED_WIDTH);
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("printing");
  if (page.figures.length) draw();
});
