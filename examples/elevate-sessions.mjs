/** Track and end visitor sessions from a shop's backend. Copy this file; it needs Node 20 only. */

const TRACK_EVERY = 60_000; // milliseconds; far less than the stack's SessionIdleMinutes
const CALL_AGAIN_AFTER = 30; // seconds, unless the answer says how many

/** No failure of the service or the network throws. */
export class ElevateSessions {
  #url;
  #headers;
  #tracked = new Map();

  constructor(url, apiKey) {
    this.#url = url.replace(/\/$/, "");
    this.#headers = { "x-api-key": apiKey, "content-type": "application/json" };
  }

  /** Note that the visitor is active; false means that they signed out and need new keys. */
  async track(session, interactive = false) {
    const { sessionKey, ...body } = session;
    // The first click and a new customerKey (sign-in) are news and do not wait.
    const news = JSON.stringify([...Object.entries(session).sort(), interactive]);
    const now = performance.now();
    if (now - (this.#tracked.get(news) ?? -TRACK_EVERY) < TRACK_EVERY) return true;
    if (this.#tracked.size >= 10_000) this.#tracked.clear();
    this.#tracked.set(news, now); // even if the call fails: an outage must not slow every page
    if (interactive) body.interactive = true;
    const { status } = await this.#call("PUT", encodeURIComponent(sessionKey ?? ""), body, 2_000);
    if (status === 409) this.#tracked.delete(news);
    return status !== 409;
  }

  /** End a session; a number means that it was not accepted: call again after that many seconds. */
  async end(session) {
    const { status, wait } = await this.#call("POST", "end", session, 15_000);
    // 204: ended. 202: kept, and sent later by the service. Other 4xx: it would only fail again.
    return status === 0 || status === 429 || status >= 500 ? wait : null;
  }

  async #call(method, path, body, milliseconds) {
    try {
      const signal = AbortSignal.timeout(milliseconds);
      const request = { method, headers: this.#headers, body: JSON.stringify(body), signal };
      const answer = await fetch(`${this.#url}/sessions/${path}`, { ...request, redirect: "manual" });
      const text = await answer.text(); // read, so that the connection can be used again
      // The service's own problems name fields and hold no key.
      const own = answer.headers.get("content-type") === "application/problem+json";
      if (!answer.ok) console.warn(`${method} session: ${answer.status} ${own ? text : ""}`);
      const wait = Number.parseInt(answer.headers.get("retry-after"), 10) || CALL_AGAIN_AFTER;
      return { status: answer.status, wait };
    } catch (error) {
      console.warn(`${method} session: ${error.cause?.code ?? error.name}`);
      return { status: 0, wait: CALL_AGAIN_AFTER };
    }
  }
}
