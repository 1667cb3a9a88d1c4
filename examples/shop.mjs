/** The two routes of a shop's backend that browser.mjs calls, here on plain Node. */
import { createServer } from "node:http";
import { json } from "node:stream/consumers";
import { ElevateSessions } from "./elevate-sessions.mjs";

const { URL: url, KEY: apiKey, MARKET, PORT: port = "8080" } = process.env;
const market = MARKET || "UK";
const sessions = new ElevateSessions(url, apiKey);

const routes = {
  async "/elevate/track"({ customerKey, sessionKey, interactive }) {
    const active = await sessions.track({ market, customerKey, sessionKey }, interactive === true);
    return active ? 204 : 409;
  },

  async "/elevate/end"({ customerKey, sessionKey }) {
    const seconds = await sessions.end({ market, customerKey, sessionKey });
    // A job in the shop's own queue is better: it survives a restart.
    if (seconds) setTimeout(routes["/elevate/end"], seconds * 1000, { customerKey, sessionKey });
    return 204;
  },
};

const server = createServer(async (request, response) => {
  const route = request.method === "POST" && routes[request.url];
  if (!route) return response.writeHead(404).end();
  // Pages of other origins cannot send this type without asking first.
  if (request.headers["content-type"] !== "application/json") return response.writeHead(415).end();
  const visitor = await json(request).catch(() => undefined);
  // Pages do send bodies without keys.
  const complete = [visitor?.customerKey, visitor?.sessionKey].every((key) => typeof key === "string");
  response.writeHead(complete ? await route(visitor) : 400).end();
});
server.listen(Number(port), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}`);
});
