"use strict";
// The page's own script: charts, the filter of groups and runs, and the theme. Without it all tables can still be read.
const told = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;
const boxes = [...document.querySelectorAll("#filter input")];
const find = document.getElementById("find");
const touch = matchMedia("(pointer: coarse)").matches;
const systemDark = matchMedia("(prefers-color-scheme: dark)");

const hiddenGroups = () => new Set(boxes.filter((box) => !box.checked).map((box) => Number(box.value)));
const isDark = () => root.dataset.theme === "dark";

// Colours are written for the light theme; in the dark one each becomes its partner.
function inTheme(value) {
  if (typeof value === "string") return isDark() && Object.hasOwn(told.themes, value) ? told.themes[value] : value;
  if (Array.isArray(value)) return value.map(inTheme);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, inTheme(item)]));
}

// A trace is hidden as a whole, or loses the points of hidden groups.
function without(trace, hidden) {
  const { group, rows } = trace.meta ?? {};
  if (group !== undefined) return hidden.has(group) ? null : trace;
  if (!rows) return trace;
  const kept = rows.flatMap((number, i) => (hidden.has(number) ? [] : [i]));
  const of = (list) => (Array.isArray(list) && list.length === rows.length ? kept.map((i) => list[i]) : list);
  return { ...trace, x: of(trace.x), y: of(trace.y), hovertext: of(trace.hovertext), meta: { rows: of(rows) } };
}

function draw() {
  const hidden = hiddenGroups();
  for (const [name, { data, layout }] of Object.entries(told.figures)) {
    const traces = data.map((trace) => without(trace, hidden)).filter(Boolean);
    const config = { displaylogo: false, responsive: true, displayModeBar: touch ? false : "hover",
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };
    // a finger that moves over a chart scrolls the page
    Plotly.react(name, inTheme(traces), inTheme({ ...layout, dragmode: touch ? false : "zoom" }), config);
  }
}

function showRuns() {
  const hidden = hiddenGroups();
  const words = find.value.trim().toLowerCase();
  for (const row of document.querySelectorAll("tr[data-group]")) row.hidden = hidden.has(Number(row.dataset.group));
  const runs = [...document.querySelectorAll("details.run")];
  for (const run of runs) {
    run.hidden = hidden.has(Number(run.dataset.group)) || !run.textContent.toLowerCase().includes(words);
  }
  const count = runs.filter((run) => !run.hidden).length;
  document.getElementById("found").textContent = `${count} of ${runs.length} runs`;
  document.getElementById("shown").textContent = `${boxes.length - hidden.size} of ${boxes.length} groups shown`;
}

function setTheme(dark) {
  root.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").textContent = dark ? "Light theme" : "Dark theme";
  if (window.Plotly) draw();
}

async function loadPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

document.getElementById("theme").addEventListener("click", () => setTheme(!isDark()));
systemDark.addEventListener("change", (event) => setTheme(event.matches));
document.getElementById("filter").addEventListener("change", () => { showRuns(); draw(); });
document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
document.getElementById("all").addEventListener("click", () => {
  for (const box of boxes) box.checked = true;
  showRuns();
  draw();
});
find.addEventListener("input", showRuns);
// what is closed on the screen is open on paper
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details.run:not([open])")];
  for (const run of closed) run.open = true;
});
addEventListener("afterprint", () => { for (const run of closed) run.open = false; });

setTheme(systemDark.matches);
showRuns();
loadPlotly().then(draw).then(() => { root.dataset.drawn = "yes"; }).catch((error) => {
  const note = document.getElementById("undrawn");
  note.textContent = `The charts could not be drawn (${error.message}); the tables below each of them say the same.`;
  note.hidden = false;
});
