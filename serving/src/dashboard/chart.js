// The live chart: one numeric column of one view, a line per series.

import { $, clock, element, every, getJson, number, short, text } from "./page.js";

const ROWS_EVERY_MS = 1500;
const VIEWS_EVERY_MS = 15000;
const ROW_LIMIT = 2000;
const MAX_SERIES = 8;
const NUMERIC = /^(u?(tiny|small|big)?int(eger)?|double|real|decimal.*)$/;
const slots = new Map(); // series -> colour; a series keeps its colour for as long as it is shown
let chart = { view: "", column: "", series: [], times: [], hover: null };

async function pollViews() {
  const { views = [] } = await getJson("/v1/views");
  fillSelect($("view"), views);
  if (!views.length) note("no views yet; define one with `iotctl apply -f FILE`");
}

function fillSelect(select, names) {
  if (names.join("\n") === [...select.options].map((option) => option.value).join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
}

function note(message) {
  text("chart-note", message);
  $("chart-note").hidden = !message;
}

async function pollRows() {
  if (!$("view").value) await pollViews();
  const view = $("view").value;
  if (!view) return;
  let answer;
  try {
    answer = await getJson(`/v1/views/${encodeURIComponent(view)}?limit=${ROW_LIMIT}`);
  } catch (e) {
    if (e.status === 404) await pollViews();
    if (e.status) note(e.message);
    throw e;
  }
  if (view === $("view").value) showRows(view, answer);
}

function showRows(view, { columns = [], rows = [], meta = {} }) {
  const times = columns.filter((column) => column.type === "timestamp" || column.type === "date");
  const time = (times.find((column) => column.name.startsWith("window")) ?? times[0])?.name;
  const numeric = columns.filter((column) => NUMERIC.test(column.type)).map((column) => column.name);
  const keys = columns.filter((column) => column.type === "text" || column.type === "boolean").map((column) => column.name);
  if (chart.view !== view) { slots.clear(); chart.hover = null; }
  fillSelect($("column"), numeric);
  const column = $("column").value;
  const drawable = time && column;
  chart = { ...chart, view, column, ...(drawable ? collect(rows, time, column, keys) : { series: [], times: [], total: 0 }) };
  note(!drawable ? "this view has no window or no number to draw" : rows.length ? "" : "waiting for the first rows");
  showLegend();
  showProvenance(meta, rows.length);
  draw();
}

// Rows -> lines: one per combination of keys, its points by time. The series with the most points are drawn.
function collect(rows, time, column, keys) {
  const lines = new Map();
  for (const row of rows) {
    const at = Date.parse(row[time]);
    const value = row[column];
    if (!Number.isFinite(at) || typeof value !== "number") continue;
    const key = keys.map((name) => row[name] ?? "∅").join(" · ") || column;
    if (!lines.has(key)) lines.set(key, new Map());
    lines.get(key).set(at, value);
  }
  const ranked = [...lines].sort((a, b) => b[1].size - a[1].size || (a[0] < b[0] ? -1 : 1)).slice(0, MAX_SERIES);
  const names = new Set(ranked.map(([name]) => name));
  for (const name of slots.keys()) if (!names.has(name)) slots.delete(name);
  const series = ranked.map(([name, points]) => ({ name, slot: slotOf(name), points: new Map([...points].sort((a, b) => a[0] - b[0])) }));
  series.sort((a, b) => (a.name < b.name ? -1 : 1));
  const times = [...new Set(series.flatMap((line) => [...line.points.keys()]))].sort((a, b) => a - b);
  return { series, times, total: lines.size };
}

function slotOf(name) {
  if (!slots.has(name)) {
    const taken = new Set(slots.values());
    slots.set(name, [...Array(MAX_SERIES).keys()].find((slot) => !taken.has(slot)) ?? 0);
  }
  return slots.get(name);
}

const last = (line) => [...line.points.values()].at(-1);

function seriesLabel(line, value) {
  const label = element("span");
  label.append(element("i", `swatch s${line.slot}`), element("span", "", line.name));
  return [label, element("b", "", number(value))];
}

function showLegend() {
  const items = chart.series.map((line) => {
    const item = element("li");
    item.append(...seriesLabel(line, last(line)));
    return item;
  });
  if (chart.total > chart.series.length) items.push(element("li", "quiet", `and ${chart.total - chart.series.length} more`));
  $("legend").replaceChildren(...items);
  const told = chart.series.map((line) => `${line.name} ${number(last(line))}`).join(", ");
  $("chart").setAttribute("aria-label", `Line chart of ${chart.column || "nothing"} in ${chart.view}. Last values: ${told || "none"}`);
}

function showProvenance(meta, rows) {
  const view = meta.views?.[0];
  const parts = [`${number(rows)} rows in ${number(meta.elapsed_ms)} ms`];
  if (view) {
    parts.push(`batch generation ${number(view.batch_generation)}`, `${number(view.speed_rows)} rows of speed state`);
    if (view.watermark) parts.push(`watermark ${view.watermark}`);
    if (view.late_events) parts.push(`${number(view.late_events)} late events`);
  }
  text("provenance", parts.join(" · "));
}

const PAD = { left: 56, right: 12, top: 10, bottom: 26 };
let scale = null;

function draw() {
  const canvas = $("chart");
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== width * ratio || canvas.height !== height * ratio) { canvas.width = width * ratio; canvas.height = height * ratio; }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  scale = chart.times.length ? scales(width, height) : null;
  if (!scale) return;
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  drawGrid(pen, width, height, colour);
  for (const line of chart.series) drawLine(pen, line, colour(`--s${line.slot}`));
  if (chart.hover !== null) drawHover(pen, height, colour("--quiet"));
}

function scales(width, height) {
  const values = chart.series.flatMap((line) => [...line.points.values()]);
  let [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  const ticks = niceTicks(low, high, Math.max(2, Math.floor(height / 60)));
  [low, high] = [Math.min(low, ticks[0]), Math.max(high, ticks.at(-1))];
  let [first, end] = [chart.times[0], chart.times.at(-1)];
  if (first === end) { first -= 60000; end += 60000; }
  const x = (at) => PAD.left + ((at - first) / (end - first)) * (width - PAD.left - PAD.right);
  const y = (value) => height - PAD.bottom - ((value - low) / (high - low)) * (height - PAD.top - PAD.bottom);
  return { x, y, ticks, first, end };
}

function niceTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.floor(low / step);
  return Array.from({ length: Math.ceil(high / step) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function drawGrid(pen, width, height, colour) {
  pen.font = "12px system-ui, sans-serif";
  pen.lineWidth = 1;
  pen.strokeStyle = colour("--grid");
  pen.fillStyle = colour("--quiet");
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const tick of scale.ticks) {
    const y = Math.round(scale.y(tick)) + 0.5;
    pen.beginPath();
    pen.moveTo(PAD.left, y);
    pen.lineTo(width - PAD.right, y);
    pen.stroke();
    pen.fillText(short(tick), PAD.left - 8, y);
  }
  const count = Math.max(2, Math.min(6, Math.floor(width / 130)));
  const span = scale.end - scale.first;
  for (let i = 0; i <= count; i += 1) {
    const at = scale.first + (span * i) / count;
    pen.textAlign = i === 0 ? "left" : i === count ? "right" : "center";
    pen.fillText(span > 86400000 ? new Date(at).toLocaleDateString() : clock(at, span < 600000), scale.x(at), height - 10);
  }
}

function drawLine(pen, line, colour) {
  const points = [...line.points].map(([at, value]) => [scale.x(at), scale.y(value)]);
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = 1.8;
  pen.lineJoin = "round";
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
  const [x, y] = points.at(-1);
  pen.beginPath();
  pen.arc(x, y, 3, 0, 2 * Math.PI);
  pen.fill();
}

function drawHover(pen, height, colour) {
  const x = Math.round(scale.x(chart.hover)) + 0.5;
  pen.strokeStyle = colour;
  pen.lineWidth = 1;
  pen.setLineDash([3, 3]);
  pen.beginPath();
  pen.moveTo(x, PAD.top);
  pen.lineTo(x, height - PAD.bottom);
  pen.stroke();
  pen.setLineDash([]);
}

function hover(event) {
  if (!scale) return;
  const box = $("chart").getBoundingClientRect();
  const x = event.clientX - box.left;
  chart.hover = chart.times.reduce((best, at) => (Math.abs(scale.x(at) - x) < Math.abs(scale.x(best) - x) ? at : best));
  const lines = chart.series.filter((line) => line.points.has(chart.hover)).map((line) => {
    const row = element("div");
    row.append(...seriesLabel(line, line.points.get(chart.hover)));
    return row;
  });
  const tip = $("tip");
  tip.replaceChildren(element("time", "", new Date(chart.hover).toLocaleString()), ...lines);
  tip.hidden = false;
  const right = x > box.width / 2;
  tip.style.left = right ? "" : `${x + 14}px`;
  tip.style.right = right ? `${box.width - x + 14}px` : "";
  tip.style.top = "12px";
  draw();
}

function unhover() {
  chart.hover = null;
  $("tip").hidden = true;
  draw();
}

export function followView() {
  $("view").addEventListener("change", pollRows);
  $("column").addEventListener("change", pollRows);
  $("chart").addEventListener("pointermove", hover);
  $("chart").addEventListener("pointerleave", unhover);
  new ResizeObserver(draw).observe($("chart"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  every(ROWS_EVERY_MS, pollRows);
  every(VIEWS_EVERY_MS, pollViews);
}
