// What the page calls things.

/** What a state says of a session. */
export const STATES = {
  open: "waits until it has been quiet for long enough",
  ending: "is being ended right now",
  retrying: "could not be delivered, and will be tried again",
  rejected: "was refused by Elevate for good",
  expired: "must have been ended by Elevate itself meanwhile",
  ended: "was delivered",
};

/** What the simulated Elevate can do: its name, and what that means. */
export const FAULTS = {
  none: ["Healthy", "It answers as documented: 204 for a valid end, 400 for an invalid one."],
  down: ["Down", "It drops every connection without an answer."],
  busy: ["Busy", "It answers 503: the cluster is busy."],
  slow: ["Slow", "It takes the end at once, but answers two seconds later."],
  hang: ["Hangs", "It takes the request and never answers, so the caller runs into its time-out."],
  reset: ["Resets", "It takes the end, then resets the connection in the middle of its answer."],
  reject: ["Rejects", "It answers 400 to everything: such an end is not tried again."],
  garbage: ["Garbage", "It answers bytes that are not HTTP."],
  flaky: ["Flaky", "About half of the requests meet one of busy, reset, down or slow."],
};

/** What the API's answers mean. */
export const ANSWERS = {
  202: "202 Accepted: Elevate is unavailable. The end is kept and will be tried again.",
  400: "400 Bad Request: the call is invalid.",
  409: "409 Conflict: the session is over. Its key must not be used again.",
  422: "422 Unprocessable Content: Elevate rejected it.",
  429: "429 Too Many Requests.",
  503: "503 Service Unavailable: nothing could be kept. Try again.",
};

/** What 204 means, by the call. */
export const SENT = {
  "PUT /sessions": "204 No Content: noted. Now it is ended once it goes quiet.",
  "POST /sessions/end": "204 No Content: delivered to Elevate, or over already.",
};
