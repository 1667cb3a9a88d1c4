/** The keys that Elevate 3's own library keeps in cookies, for browser.mjs. They must be UUIDs there. */
const CUSTOMER = "apptus.customerKey";
const SESSION = "apptus.sessionKey";
const YEAR = 365 * 24 * 60 * 60; // seconds; what Voyado recommends for the customerKey

/** Return what `localStorageBackedSession()` returns on Elevate 4. */
export function cookieBackedSession() {
  const session = () => ({ customerKey: read(CUSTOMER), sessionKey: read(SESSION) });
  session.updateCustomerKey = (key) => write(CUSTOMER, key);
  session.reset = () => [CUSTOMER, SESSION].forEach((name) => write(name, crypto.randomUUID()));
  return session;
}

function read(name) {
  const found = document.cookie.split("; ").find((cookie) => cookie.startsWith(`${name}=`));
  return found?.slice(name.length + 1) || write(name, crypto.randomUUID());
}

/** Write a cookie as the library does: on another domain or path it would be a second one. */
function write(name, key) {
  const lasts = name === CUSTOMER ? `; max-age=${YEAR}` : "";
  const secure = location.protocol === "https:" ? "; secure" : "";
  document.cookie = `${name}=${key}; domain=${location.hostname}; path=/${lasts}${secure}`;
  return key;
}
