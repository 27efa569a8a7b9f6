// The list of alerts: what is open first, then what was.

import { $, clock, element, getJson, state } from "./page.js";

const MAX_ALERTS = 60;
const REOPEN_AFTER_MS = 3000;
const REDRAW_AFTER_MS = 50;

let alerts = new Map(); // alert id -> its newest transition

// EventSource comes back by itself and resumes after the last id it saw. The list is read anew with each
// connection, because a server that starts with an empty log has nothing to resume from.
export function followAlerts() {
  const source = new EventSource("/v1/alerts/stream?snapshot=true");
  source.onopen = () => {
    state("stream", "live", "live");
    alerts = new Map();
    getJson(`/v1/alerts?limit=${MAX_ALERTS}&historical=false`).then(({ alerts: list = [] }) => list.forEach(keep), () => {}).then(showAlerts);
  };
  source.onerror = () => {
    const ended = source.readyState === EventSource.CLOSED;
    state("stream", ended ? "offline" : "connecting", ended ? "not available" : "reconnecting");
    if (ended) setTimeout(followAlerts, REOPEN_AFTER_MS);
  };
  source.addEventListener("alert", (event) => {
    const transition = JSON.parse(event.data);
    keep(transition);
    showAlerts(transition.alert_id);
  });
}

function keep(transition) {
  const known = alerts.get(transition.alert_id);
  if (!known || known.id < transition.id) alerts.set(transition.alert_id, transition);
}

let timer = null;
let arrived = new Set(); // what came since the list was drawn

// Many transitions may come at once; the list is drawn once for all of them.
function showAlerts(id) {
  if (id) arrived.add(id);
  timer ??= setTimeout(() => {
    timer = null;
    drawAlerts();
    arrived = new Set();
  }, REDRAW_AFTER_MS);
}

function drawAlerts() {
  const open = (alert) => alert.state === "firing" || alert.state === "pending";
  const all = [...alerts.values()].filter((alert) => alert.state !== "inactive");
  all.sort((a, b) => open(b) - open(a) || b.id - a.id);
  for (const alert of all.slice(MAX_ALERTS).filter((alert) => !open(alert))) alerts.delete(alert.alert_id);
  $("alerts").replaceChildren(...all.slice(0, MAX_ALERTS).map(alertItem));
  $("no-alerts").hidden = all.length > 0;
}

function alertItem(alert) {
  const item = element("li", arrived.has(alert.alert_id) ? "new" : "");
  item.dataset.state = alert.state;
  const labels = Object.entries(alert.labels ?? {});
  const name = alert.labels?.device_id ? `${alert.rule} · ${alert.labels.device_id}` : alert.rule;
  const time = element("time", "", clock(Date.parse(alert.at)));
  time.dateTime = alert.at;
  time.title = `since ${alert.started_at}`;
  item.append(element("span", "state", alert.state), element("strong", "", name), time);
  const summary = alert.annotations?.summary ?? labels.map(([key, value]) => `${key}=${value}`).join(" ");
  item.append(element("span", "detail", [alert.severity, summary].filter(Boolean).join(" · ")));
  return item;
}
