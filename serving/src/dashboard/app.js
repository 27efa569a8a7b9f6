// The dashboard. It only reads: /v1/status and one view by polling, the alert log by server-sent events.
// Whatever a server leaves out of its answers shows as a dash.

import { followAlerts } from "./alerts.js";
import { followView } from "./chart.js";
import { $, DASH, bytes, duration, element, every, getJson, number, short, state, text } from "./page.js";

const STATUS_EVERY_MS = 1000;
const DEVICES_EVERY_MS = 15000;
const SPARK_POINTS = 60;

let before = null;
const rates = [];

async function pollStatus() {
  let status;
  try {
    status = await getJson("/v1/status");
  } catch (e) {
    // A server that answers is there, even if it cannot say how it is.
    state("connection", e.status ? "connecting" : "offline", e.status ? "not ready" : "server unreachable");
    before = null;
    throw e;
  }
  state("connection", "live", "connected");
  showThroughput(status);
  const [value, unit] = duration(status.freshness_ms ?? NaN);
  text("freshness", value);
  text("freshness-unit", unit);
  if (Number.isFinite(status.devices)) text("devices", number(status.devices));
  if (status.alerts) showActive(status.alerts.firing, status.alerts.pending);
  showLayers(status);
}

function showThroughput(status) {
  const events = status.ingest?.events;
  const now = { events, at: performance.now() };
  if (before && events >= before.events) {
    rates.push((events - before.events) / ((now.at - before.at) / 1000));
    if (rates.length > SPARK_POINTS) rates.shift();
  }
  before = Number.isFinite(events) ? now : null;
  // The mean of the last few seconds: gateways send in bursts.
  const recent = rates.slice(-3);
  text("throughput", recent.length ? short(Math.round(recent.reduce((a, b) => a + b, 0) / recent.length)) : DASH);
  text("throughput-note", Number.isFinite(events) ? `${short(events)} events so far` : " ");
  const top = Math.max(...rates, 1);
  const points = rates.map((rate, i) => `${(100 * (i + SPARK_POINTS - rates.length)) / (SPARK_POINTS - 1)} ${23 - (22 * rate) / top}`);
  $("spark").firstElementChild.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
}

function showActive(firing, pending) {
  text("firing", number(firing));
  text("pending", number(pending));
  $("alerts-tile").dataset.firing = firing > 0;
}

const frontier = (value) => (typeof value === "string" ? value : Object.entries(value ?? {}).map(([node, seq]) => `${node}:${seq}`).join(", ")) || DASH;

function showLayers(status) {
  text("node", status.node ? `node ${status.node}` : "");
  text("uptime", Number.isFinite(status.uptime_s) ? `up ${duration(status.uptime_s * 1000).join(" ")}` : "");
  const rows = (status.views ?? []).map((view) => {
    const row = element("tr");
    row.append(
      element("td", "", view.name), element("td", "num", number(view.batch_generation)),
      element("td", "", frontier(view.batch_frontier)), element("td", "", frontier(view.frontier)),
      element("td", "num", number(view.speed_rows)),
    );
    return row;
  });
  $("layers").replaceChildren(...rows);
  const ingest = status.ingest ?? {};
  const facts = [
    ["messages", number(ingest.messages)], ["dead letters", number(ingest.dead_letters)],
    ["unsealed", bytes(ingest.unsealed_bytes)], ["log", bytes(ingest.log_bytes)],
    ["last position", number(ingest.last_seq)],
    ...(status.streams ?? []).map((stream) => [`stream ${stream.name}`, `${number(stream.events)} events`]),
  ];
  $("ingest").replaceChildren(...facts.map(([name, value]) => {
    const fact = element("div");
    fact.append(element("dt", "", name), element("dd", "", value));
    return fact;
  }));
}

async function pollDevices() {
  const { items } = await getJson("/v1/catalog/devices");
  if (Array.isArray(items)) text("devices", number(items.length));
}

every(STATUS_EVERY_MS, pollStatus);
every(DEVICES_EVERY_MS, pollDevices);
followView();
followAlerts();
