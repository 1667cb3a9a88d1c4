/** Tell the shop's backend about the session whose keys Elevate's own client keeps in this browser. */
import { localStorageBackedSession } from "@apptus/esales-api"; // version 3: for Elevate 4 only
// On Elevate 3: import { cookieBackedSession as localStorageBackedSession } from "./elevate-3.mjs";

/** Give this to elevate({ session, … }) as well. Its keys never expire: only reset() renews them. */
export const session = localStorageBackedSession();

/** Call on each page view, and with true after a click, add to cart, payment or favourite. */
export async function track(interactive = false) {
  const keys = session();
  const answer = await post("/elevate/track", { ...keys, interactive });
  if (answer?.status !== 409) return;
  // A sign-out ended this session, so its keys are used up. Another tab may have renewed them already.
  if (session().sessionKey === keys.sessionKey) reset();
  await post("/elevate/track", { ...session(), interactive });
}

/** Call after sign-in: the session goes on under the customer's own key. */
export async function signedIn(customerKey) {
  try {
    session.updateCustomerKey(customerKey);
  } catch {
    // localStorage is full, and this page has the new key nevertheless.
  }
  await track();
}

/** Call on sign-out. The keys are renewed even if the call fails: the next visitor is someone else. */
export async function signedOut() {
  const keys = session();
  reset();
  await post("/elevate/end", keys);
}

/** Renew both keys. If localStorage is full, this page has new ones, and the next must not find the old. */
function reset() {
  try {
    session.reset();
  } catch {
    localStorage.removeItem("voyado.session");
  }
}

/** Send to the shop's backend, even while the page is being left; a failure is the backend's to log. */
function post(path, body) {
  const headers = { "content-type": "application/json" };
  const request = { method: "POST", keepalive: true, headers, body: JSON.stringify(body) };
  return fetch(path, request).catch(() => undefined);
}
