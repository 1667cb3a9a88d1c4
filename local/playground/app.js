// The playground's page: asks for the state every second, shows it, and sends what is clicked.
import { play, tell } from "/story.js";
import { ANSWERS, FAULTS, SENT, STATES } from "/words.js";

const POLL = 1000;
const $ = (id) => document.getElementById(id);

let state = {};
let filter = "all";
let picked = null;
let acts = 0;

// -- parts ----------------------------------------------------------------------------------

function make(tag, about = {}, ...children) {
  const element = Object.assign(document.createElement(tag), about);
  element.append(...children);
  return element;
}

/** Write only what has changed: a thousand rows are checked every second. */
function set(element, name, value) {
  if (element[name] !== value) element[name] = value;
}

async function send(action, body = {}) {
  const answer = await fetch(`/${action}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const reply = await answer.json();
  if (!answer.ok) throw new Error(reply.error);
  return reply;
}

/** Do what a button asks for, show the answer, and refresh at once to show the effect. */
export async function act(action, body) {
  const mine = ++acts;
  const say = (text) => mine === acts && set($("answer"), "textContent", text);
  say("Sending …");
  try {
    const reply = await send(action, body);
    say(`${reply.request} → ${meaning(reply)}`);
    if (reply.session) {
      set($("flow-api"), "textContent", `answered ${reply.status}`);
      if (mine === acts) pick(reply.session.sessionKey);
    }
    return reply;
  } catch (error) {
    say(`It could not be done: ${error.message}`);
    return null;
  } finally {
    refresh();
  }
}

function meaning(reply) {
  if (reply.status === undefined) return "sent. Its effect shows in the logs below.";
  if (reply.request.startsWith("PUT /_sim")) return "the simulated Elevate has changed.";
  if (reply.status === 204) {
    return SENT[Object.keys(SENT).find((call) => reply.request.startsWith(call))];
  }
  return ANSWERS[reply.status] ?? `${reply.status} ${reply.body?.title ?? ""}`;
}

function pick(key) {
  picked = key;
  show();
}

const short = (key) => (key.length > 12 ? `${key.slice(0, 8)}…` : key);
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const clockOf = (line) => (line.timestamp ? clock(Date.parse(line.timestamp) / 1000) : "");
export const market = () => $("market").value;

function until(seconds) {
  if (seconds <= 0) return "now";
  if (seconds < 60) return `in ${Math.ceil(seconds)} s`;
  if (seconds < 3600) return `in ${Math.round(seconds / 60)} min`;
  return `in ${(seconds / 3600).toFixed(1)} h`;
}

function keyButton(key) {
  return make("button", {
    className: "key",
    textContent: short(key),
    title: `${key}: mark it, and show it on top`,
    onclick: () => pick(picked === key ? null : key),
  });
}

// -- sessions -------------------------------------------------------------------------------

const rows = new Map();
const unfinished = (session) => session.dueAt !== undefined && session.state !== "rejected";

/** The marked one first; then what is still to be done, by its due time; then the latest ends. */
function inOrder(a, b) {
  const [isFirst, isSecond] = [a.sessionKey === picked, b.sessionKey === picked];
  if (isFirst !== isSecond) return isFirst ? -1 : 1;
  const [first, second] = [unfinished(a), unfinished(b)];
  if (first !== second) return first ? -1 : 1;
  if (first) return a.dueAt - b.dueAt;
  return (b.settledAt ?? b.activeAt ?? 0) - (a.settledAt ?? a.activeAt ?? 0);
}

function newRow(session) {
  const about = () => {
    const { market, sessionKey, customerKey, userContext } = row.session;
    return { market, sessionKey, customerKey, userContext };
  };
  const name = short(session.sessionKey);
  const row = {
    session,
    pill: make("span"),
    due: make("td", { className: "due" }),
    last: make("td", { className: "last" }),
    end: make("button", { textContent: "End", onclick: () => act("end", about()) }),
    track: make("button", { textContent: "Track", onclick: () => act("track", about()) }),
  };
  row.end.ariaLabel = `End ${name}`;
  row.track.ariaLabel = `Track ${name} again`;
  row.element = make("tr", {},
    make("td", { className: "name" }, keyButton(session.sessionKey),
      make("span", { className: "market", textContent: session.market })),
    make("td", { className: "state" }, row.pill),
    row.due,
    row.last,
    make("td", { className: "acts" }, row.track, row.end));
  return row;
}

function lastAnswer(session) {
  if (!session.attempts) return "";
  const answer = session.lastStatus ?? "no answer";
  const attempts = session.attempts === 1 ? "1 attempt" : `${session.attempts} attempts`;
  return [answer, session.lastReason, attempts].filter(Boolean).join(" · ");
}

function showSessions() {
  const seen = new Set();
  let place = $("sessions").firstElementChild;
  for (const session of state.sessions.toSorted(inOrder)) {
    if (filter !== "all" && session.state !== filter) continue;
    const id = `${session.market}\n${session.sessionKey}`;
    seen.add(id);
    if (!rows.has(id)) rows.set(id, newRow(session));
    const row = rows.get(id);
    row.session = session;
    set(row.pill, "className", `pill ${session.state}`);
    set(row.pill, "textContent", session.state);
    set(row.pill, "title", `This session ${STATES[session.state] ?? "is in a new state"}.`);
    set(row.due, "textContent", unfinished(session) ? until(session.dueAt - state.now) : "");
    set(row.last, "textContent", lastAnswer(session));
    set(row.last, "title", row.last.textContent);
    set(row.end, "hidden", session.state === "ended");
    set(row.element, "className", session.sessionKey === picked ? "picked" : "");
    // The row that is here has moved down: move that one, not each of the rows below it.
    if (place?.nextElementSibling === row.element) {
      place.remove();
      place = row.element;
    }
    if (row.element === place) place = place.nextElementSibling;
    else $("sessions").insertBefore(row.element, place);
  }
  for (const [id, row] of rows) {
    if (seen.has(id)) continue;
    row.element.remove();
    rows.delete(id);
  }
  set($("no-sessions"), "hidden", seen.size > 0);
  set($("no-sessions"), "textContent", state.sessions.length
    ? "No session is in this state."
    : "No sessions yet. Track a visitor, and one appears here.");
}

function showFilters() {
  const counts = Map.groupBy(state.sessions, (session) => session.state);
  for (const button of $("filters").children) {
    const name = button.value;
    const count = name === "all" ? state.sessions.length : (counts.get(name)?.length ?? 0);
    const more = name === "all" && state.more ? "+" : "";
    set(button, "textContent", `${name[0].toUpperCase()}${name.slice(1)} ${count}${more}`);
    set(button, "hidden", !count && name !== "all" && name !== filter);
    set(button, "ariaPressed", String(name === filter));
  }
}

/** Show where something is waiting on the path of an end. */
function showFlow() {
  const count = (name) => state.sessions.filter((session) => session.state === name).length;
  const waiting = count("retrying");
  const parts = [[count("open"), "open"], [waiting, "retrying"]];
  set($("flow-registry"), "textContent", parts.filter(([number]) => number)
    .map((part) => part.join(" ")).join(" · ") || "nothing is waiting");
  set($("flow-registry").parentElement, "className", waiting ? "warn" : "");
  const swept = state.log.findLast((line) => line.function === "sweep" && line.timestamp);
  if (swept) set($("flow-sweep"), "textContent", `last ran at ${clockOf(swept)}`);
  const kind = state.elevate?.fault.kind ?? "none";
  const elevate = state.elevate ? FAULTS[kind][0].toLowerCase() : "your own cluster";
  set($("flow-elevate"), "textContent", elevate);
  set($("flow-elevate").parentElement, "className", kind === "none" ? "good" : "bad");
}

// -- Elevate and the logs -------------------------------------------------------------------

function showElevate() {
  const { fault, latest, received, delivered } = state.elevate;
  const [, text] = FAULTS[fault.kind];
  set($("fault"), "textContent", text);
  set($("counts"), "textContent", `${received} received · ${delivered} delivered`);
  for (const button of $("faults").children) {
    set(button, "ariaPressed", String(button.value === fault.kind));
  }
  set($("no-received"), "hidden", latest.length > 0);
  const shown = latest.toReversed().map((notification) => {
    const key = notification.query["esales.sessionKey"] ?? notification.query.sessionKey ?? "";
    const good = notification.status === 204;
    const row = make("tr", { className: key && key === picked ? "picked" : "" },
      make("td", { textContent: clock(notification.time) }),
      make("td", {}, keyButton(key)),
      make("td", {}, make("span", {
        className: `pill ${good ? "good-pill" : "bad-pill"}`,
        textContent: notification.status ?? "no answer",
      })));
    return row;
  });
  keep($("received"), shown, `${received} ${picked}`);
}

// The fields a reader needs least; hovering over a line shows all of it.
const QUIET = ["function", "level", "message", "timestamp", "correlation_id",
  "xray_trace_id", "customer"];

function fields(line, quiet) {
  return Object.entries(line)
    .filter(([name, value]) => !quiet.includes(name) && value !== 0)
    .map(([name, value]) => `${name}=${value}`).join(" ");
}

function showLines() {
  set($("no-lines"), "hidden", state.log.length > 0);
  const shown = state.log.toReversed().map((line) => make("li", { title: fields(line, []) },
    make("span", { className: "soft", textContent: clockOf(line) }),
    make("span", { textContent: line.function }),
    make("span", { className: `pill ${line.level}`, textContent: line.message }),
    make("span", { className: "soft fields", textContent: fields(line, QUIET) })));
  keep($("lines"), shown, JSON.stringify([state.log.length, state.log.at(-1)]));
}

/** Replace a list only when its content is new, so that nobody loses the focus or a selection. */
function keep(element, children, version) {
  if (element.dataset.version === version) return;
  element.dataset.version = version;
  element.replaceChildren(...children);
}

// -- all of it ------------------------------------------------------------------------------

function show() {
  if (!state.sessions) return;
  showFilters();
  showSessions();
  showLines();
  showFlow();
  $("elevate").hidden = $("story").hidden = !state.elevate;
  if (state.elevate) showElevate();
  tell(state);
}

function showPhase(text, kind = "") {
  const [dot, words] = $("phase").children;
  set(dot, "className", `dot ${kind}`);
  set(words, "textContent", text);
}

async function refresh() {
  try {
    const answer = await fetch("/state");
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    state = found;
  } catch {
    showPhase("The stack does not answer. Is `make run` still running?", "bad");
    return;
  }
  if (state.phase) {
    showPhase(state.phase);
    return;
  }
  if (!$("market").options.length) begin();
  showPhase("Live", "good");
  show();
}

function begin() {
  $("market").append(...state.markets.map((name) => make("option", { textContent: name })));
  $("market-label").hidden = state.markets.length < 2;
  for (const button of $("tools").querySelectorAll("button")) button.disabled = false;
  play();
}

function choice(value, textContent, className, onclick) {
  return make("button", { value, textContent, className, onclick });
}

$("filters").append(...["all", ...Object.keys(STATES)].map((name) => choice(name, name, "", () => {
  filter = name;
  show();
})));
$("faults").append(...Object.entries(FAULTS).map(([kind, [name]]) =>
  choice(kind, name, kind === "none" ? "" : "bad", () => act("fault", { kind }))));
$("track").onclick = () => act("track", { market: market() });
$("track-many").onclick = () => act("track-many", { market: market() });
$("end-new").onclick = () => act("end", { market: market() });
$("sweep").onclick = () => act("sweep");

async function poll() {
  await refresh();
  setTimeout(poll, POLL);
}
poll();
