// Everything that is asked of the service goes through here: addresses, the key, problems in the API's own words, streams.

const HERE = new URL(".", location.href.split("#")[0]);
const KEY = "vision-key";
const remedies = new Map();

/** The address of a path of the service, wherever a proxy has put it; links of the service itself may have that in them already. */
export const address = (path) => new URL(path.startsWith(HERE.pathname) ? path : path.replace(/^\//, ""), HERE);
export const shown = (path) => address(path).href;

export const key = {
  get() {
    try {
      return sessionStorage.getItem(KEY) ?? "";
    } catch {
      return "";
    }
  },
  set(value) {
    try {
      value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY);
    } catch {
      /* kept nowhere then */
    }
    dispatchEvent(new Event("key-changed"));
  },
};

/** What went wrong, as RFC 9457 says it; `retryAfter` in seconds where the service wants to be asked again. */
export class Problem extends Error {
  constructor(document, { status = 0, retryAfter = null } = {}) {
    super(document.detail ?? document.title);
    Object.assign(this, { remedy: "", ...document, status, retryAfter });
  }
}

/** Is it only that somebody stopped it? */
export const aborted = (error) => error?.name === "AbortError";

/** Ask, and give {data, headers, status}. `as`: "json" or "blob". Throws Problem, and AbortError by `signal`. */
export async function ask(path, { method = "GET", form, json, signal, as = "json", accept } = {}) {
  const response = await send(path, {
    method,
    body: form ?? (json && JSON.stringify(json)),
    json,
    signal,
    accept: accept ?? (as === "json" ? "application/json" : "*/*"),
  });
  try {
    return { data: await response[as](), headers: response.headers, status: response.status };
  } catch (error) {
    throw aborted(error) ? error : cut();
  }
}

async function send(path, { method = "GET", body, json, signal, accept }) {
  const headers = { Accept: accept };
  if (json) headers["Content-Type"] = "application/json";
  if (key.get()) headers["X-API-Key"] = key.get();
  let response;
  try {
    response = await fetch(address(path), { method, body, headers, signal, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    throw aborted(error) ? error : cut();
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

const cut = () =>
  new Problem({
    code: "network",
    title: navigator.onLine ? "The server cannot be reached" : "You are offline",
    detail: `There was no answer from ${HERE.host}.`,
    remedy: "See whether vision-service still runs there and the network is up, then try again.",
  });

async function problemOf(response) {
  let told;
  try {
    told = await response.json();
  } catch {
    told = null;
  }
  if (typeof told?.title !== "string")
    told = {
      code: "unexpected",
      title: `The server answered ${response.status}`,
      detail: "The answer was not one of this service; a proxy in between may have given it.",
    };
  const wait = Number.parseFloat(response.headers.get("Retry-After") ?? told.retry_after ?? "");
  const problem = new Problem(told, { status: response.status, retryAfter: Number.isFinite(wait) ? wait : null });
  problem.remedy = await remedyOf(problem.code);
  return problem;
}

async function remedyOf(code) {
  if (code === "unexpected") return "";
  if (!remedies.has(code)) {
    try {
      const response = await fetch(address(`problems/${encodeURIComponent(code)}`));
      remedies.set(code, response.ok ? (await response.json()).remedy : "");
    } catch {
      return "";
    }
  }
  return remedies.get(code);
}

/** A server-sent stream as {event, data} objects. By fetch, for an EventSource can send no key. */
export async function* events(path, signal) {
  const response = await send(path, { signal, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value.replaceAll("\r", "");
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) {
        const found = parse(block);
        if (found) yield found;
      }
    }
  } catch (error) {
    throw aborted(error) ? error : cut();
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}

/** Fields and options as the form that goes over the wire; what is empty is left out. */
export function formOf(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one === null || one === undefined || one === "") continue;
      if (one instanceof File) form.append(name, one, one.name);
      else form.append(name, one instanceof Blob ? one : String(one));
    }
  }
  return form;
}

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** The same request as a curl command. `save`: the file that the answer goes into. */
export function curl(path, { method = "POST", fields = {}, save, headers = {}, json, note = "" } = {}) {
  const parts = ["curl"];
  if (method === "DELETE" || method === "PATCH") parts.push("-X", method);
  if (key.get()) parts.push("-H", '"X-API-Key: $KEY"');
  for (const [name, value] of Object.entries(headers)) parts.push("-H", quoted(`${name}: ${value}`));
  if (json) parts.push("-H", "'Content-Type: application/json'", "-d", quoted(JSON.stringify(json)));
  for (const [name, value] of Object.entries(fields)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one === null || one === undefined || one === "") continue;
      parts.push("-F", quoted(one instanceof Blob ? `${name}=@${one.name ?? "photo.jpg"}` : `${name}=${one}`));
    }
  }
  parts.push(quoted(shown(path)));
  if (save) parts.push("-o", save);
  return parts.join(" ") + (note && `  ${note}`);
}
