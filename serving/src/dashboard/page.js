// What the parts of the page share: numbers as people read them, elements, and asking the server.

export const DASH = "–";
const REQUEST_TIMEOUT_MS = 8000;

export const $ = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const text = (id, value) => { if ($(id).textContent !== value) $(id).textContent = value; };
export const number = (value) => (Number.isFinite(value) ? numbers.format(value) : DASH);
export const short = (value) => (Number.isFinite(value) ? (Math.abs(value) < 10000 ? numbers.format(value) : compact.format(value)) : DASH);
export const clock = (ms, seconds = true) => new Date(ms).toLocaleTimeString([], { hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: seconds ? "2-digit" : undefined });

export function element(tag, className, content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (content !== undefined) node.textContent = content;
  return node;
}

export function bytes(value) {
  if (!Number.isFinite(value)) return DASH;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${value.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

export function duration(ms) {
  if (!Number.isFinite(ms)) return [DASH, ""];
  if (ms < 1000) return [Math.round(ms).toString(), "ms"];
  if (ms < 60000) return [(ms / 1000).toFixed(1), "s"];
  if (ms < 3600000) return [(ms / 60000).toFixed(1), "min"];
  return [(ms / 3600000).toFixed(1), "h"];
}

export function state(id, value, label) {
  $(id).dataset.state = value;
  text(id, label);
}

export async function getJson(path) {
  const response = await fetch(path, { headers: { accept: "application/json" }, signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS) });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(body.detail || `status ${response.status}`), { status: response.status });
  return body;
}

// Runs `work` now and then for as long as the page is looked at; a failure never ends the loop.
export function every(ms, work) {
  const turn = async () => {
    if (!document.hidden) await work().catch((e) => console.debug(e.message));
    setTimeout(turn, ms);
  };
  turn();
}
