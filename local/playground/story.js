// The story: Elevate is down, an end is kept, Elevate is back, the next sweep delivers it.
import { act, market } from "/app.js";

const $ = (id) => document.getElementById(id);
const steps = ["step-1", "step-2", "step-3"].map($);

let done = 0;
let session = null; // whose end is kept
let sweptFor = 0; // the due time that a sweep was asked for

export function play() {
  done = 0;
  session = null;
  sweptFor = 0;
  say("Each step shows here what happened, and why.");
  enable();
}

function enable() {
  steps.forEach((button, place) => {
    button.disabled = place !== done;
    button.parentElement.className = place < done ? "done" : "";
  });
  $("again").hidden = done === 0;
}

/** Go on to the next step, and focus it for those who use the keyboard. */
function next() {
  const wasHere = steps.includes(document.activeElement) || document.activeElement === document.body;
  done += 1;
  enable();
  if (wasHere) (steps[done] ?? $("again")).focus({ preventScroll: true });
}

function say(text, kind = "") {
  const why = $("why");
  if (why.textContent !== text) why.textContent = text;
  why.className = kind;
}

steps[0].onclick = async () => {
  if (!(await act("fault", { kind: "down" }))) return;
  say("Elevate is down: it drops every connection. A browser would lose its end notification now.");
  next();
};

steps[1].onclick = async () => {
  const reply = await act("end", { market: market() });
  if (!reply) return;
  if (reply.status !== 202) {
    say(`The API answered ${reply.status}, because Elevate was not down. Start again.`, "bad");
    return;
  }
  session = reply.session;
  say("The API answered 202 Accepted. It could not reach Elevate, so it keeps the end in the"
    + " registry: see the marked row.", "warn");
  next();
};

steps[2].onclick = async () => {
  if (!(await act("fault", { kind: "none" }))) return;
  next();
};

/** Say how the kept end is doing, according to the registry. */
export function tell(state) {
  if (done !== 3 || !session) return;
  const row = state.sessions.find((found) =>
    found.sessionKey === session.sessionKey && found.market === session.market);
  if (row?.state === "ended") {
    say(`Delivered: a sweep found the end due, Elevate answered ${row.lastStatus}, and the session`
      + ` is ended. It took ${row.attempts} attempts, and nothing was lost.`, "good");
  } else if (row?.state === "retrying" && row.dueAt > state.now) {
    say("Elevate is back. The kept end waits until it is due, as the list below shows. Such waits"
      + " are random, so that a recovering Elevate does not get everything at once.", "warn");
  } else if (row?.state === "retrying") {
    say("The kept end is due. The schedule sweeps every minute; so that you need not wait, this"
      + " page has just asked for a sweep.", "warn");
    if (sweptFor !== row.dueAt) {
      sweptFor = row.dueAt;
      act("sweep");
    }
  } else if (row) {
    say(`The session is now ${row.state}: ${row.lastReason ?? "see the logs below"}.`, "bad");
  }
}

$("again").onclick = async () => {
  if (await act("fault", { kind: "none" })) play();
  steps[0].focus({ preventScroll: true });
};
