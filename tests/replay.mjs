/**
 * Print what visitors do in 14 days, one JSON line each, with the keys that Elevate's own client has then.
 *
 * Arguments: the client's file, the seconds after which a visitor counts as gone, a seed. The last
 * visitor's shop forgets to call reset().
 */
const [client, quiet, seed] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const MINUTE = 60, DAY = 24 * 60 * MINUTE, VISITORS = 12;
const PAUSES = [15, 50, 5 * MINUTE, quiet - 2 * MINUTE]; // between page views: the visitor is there
const ABSENCES = [quiet + 2 * MINUTE, 2 * quiet, 90 * MINUTE, 5 * 60 * MINUTE, DAY, 3 * DAY]; // between visits

let state = seed;
function random() { // mulberry32
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), state | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
}
const below = (limit) => Math.floor(random() * limit);
const one = (list) => list[below(list.length)];
const digits = (count) => Array.from({ length: count }, () => below(16).toString(16)).join("");
crypto.randomUUID = () => `${digits(8)}-${digits(4)}-4${digits(3)}-a${digits(3)}-${digits(12)}`;

/** A browser: its localStorage outlives its pages, and each page loads the client anew. */
let pages = 0;
async function load(stored) {
  const value = { getItem: (name) => stored.get(name) ?? null, setItem: (...to) => stored.set(...to) };
  Object.defineProperty(globalThis, "localStorage", { value, configurable: true });
  globalThis.addEventListener = () => {};
  return (await import(`${client}?page=${pages++}`)).localStorageBackedSession();
}

const lines = [];
for (let visitor = 0; visitor < VISITORS; visitor++) {
  const stored = new Map(), account = crypto.randomUUID(), forgets = visitor === VISITORS - 1;
  let at = below(DAY), signedIn = false;
  for (let visit = 0; at < 14 * DAY; visit++) {
    const note = (what, keys) => lines.push({ at, visit: `${visitor}/${visit}`, what, ...keys });
    const signsOut = signedIn ? random() < 0.4 : false;
    // A visitor who finds the shop's page still open may do nothing but sign out.
    for (let views = signsOut ? below(5) : 1 + below(5); views > 0; views--) {
      const session = await load(stored);
      const signsIn = !signedIn && random() < 0.2;
      if (signsIn) session.updateCustomerKey(account);
      signedIn ||= signsIn;
      note(signsIn || random() < 0.3 ? "click" : "view", session());
      at += one(PAUSES);
    }
    if (signsOut) {
      const session = await load(stored);
      note("sign-out", session());
      if (!forgets) session.reset();
      signedIn = false;
    }
    at += one(ABSENCES) + below(quiet);
  }
}
lines.sort((one, other) => one.at - other.at);
for (const line of lines) console.log(JSON.stringify(line));
