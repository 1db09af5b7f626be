"use strict";
// Draws the charts, filters groups and runs, and switches the theme. Tables can be read without it.
const content = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;
const boxes = [...document.querySelectorAll("#filter input")];
const find = document.getElementById("find");
const touch = matchMedia("(pointer: coarse)").matches;
const systemDark = matchMedia("(prefers-color-scheme: dark)");

const hiddenGroups = () => new Set(boxes.filter((box) => !box.checked).map((box) => Number(box.value)));
const isDark = () => root.dataset.theme === "dark";

// Replace the colours of the light theme by those of the dark theme.
function inTheme(value) {
  if (typeof value === "string") return isDark() && Object.hasOwn(content.themes, value) ? content.themes[value] : value;
  if (Array.isArray(value)) return value.map(inTheme);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, inTheme(item)]));
}

// Remove a trace, or its points that belong to hidden groups.
function without(trace, hidden) {
  const { group, rows } = trace.meta ?? {};
  if (group !== undefined) return hidden.has(group) ? null : trace;
  if (!rows) return trace;
  const visible = rows.flatMap((number, i) => (hidden.has(number) ? [] : [i]));
  const of = (list) => (Array.isArray(list) && list.length === rows.length ? visible.map((i) => list[i]) : list);
  return { ...trace, x: of(trace.x), y: of(trace.y), hovertext: of(trace.hovertext), meta: { rows: of(rows) } };
}

function draw() {
  const hidden = hiddenGroups();
  for (const [name, { data, layout }] of Object.entries(content.figures)) {
    const traces = data.map((trace) => without(trace, hidden)).filter(Boolean);
    const config = { displaylogo: false, responsive: true, displayModeBar: touch ? false : "hover",
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };
    // on touch screens, moving over a chart scrolls the page
    Plotly.react(name, inTheme(traces), inTheme({ ...layout, dragmode: touch ? false : "zoom" }), config);
  }
}

function showRuns() {
  const hidden = hiddenGroups();
  const query = find.value.trim().toLowerCase();
  for (const row of document.querySelectorAll("tr[data-group], details.mistakes")) row.hidden = hidden.has(Number(row.dataset.group));
  const runs = [...document.querySelectorAll("details.run")];
  for (const run of runs) {
    run.hidden = hidden.has(Number(run.dataset.group)) || !run.textContent.toLowerCase().includes(query);
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
for (const [id, name] of [["differences", "differing"], ["whole", "whole"]]) {
  document.getElementById(id)?.addEventListener("change", (event) => {
    document.querySelector("table.main").classList.toggle(name, event.target.checked);
  });
}
// print all runs, also those that are collapsed on the screen
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
  note.textContent = `The charts could not be drawn (${error.message}); the tables below the charts have the same numbers.`;
  note.hidden = false;
});
