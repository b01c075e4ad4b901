/* Requests to the server that the page came from. */

export const BASE = new URL(".", location.origin + location.pathname).href;
const TOKEN = "gptask-token";
let token = "";
try { token = sessionStorage.getItem(TOKEN) ?? ""; } catch { /* storage is off: the token lives as long as the page */ }

export const hasToken = () => token !== "";

export function setToken(text) {
  token = text.trim();
  try {
    if (token) sessionStorage.setItem(TOKEN, token);
    else sessionStorage.removeItem(TOKEN);
  } catch { /* storage is off */ }
}

/** What went wrong with a request; `param` names a field of it, `retryAfter` is in seconds. */
export class ServerError extends Error {
  constructor(message, { status = 0, param = null, requestId = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, requestId, retryAfter });
  }
}

/** The response to a POST of `body`, or to a GET without one; raises ServerError, and AbortError of the signal. */
export async function call(path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(BASE + path, {
      method: body === undefined ? "GET" : "POST",
      body: body === undefined ? undefined : JSON.stringify(body),
      headers,
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!isHeaderText(token)) throw new ServerError("The token has characters that no token can have.", { status: 401 });
    throw new ServerError("The server does not answer. Is it running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

const isHeaderText = (text) => /^[\x20-\xff]*$/.test(text);

async function refusal(response) {
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  let error = null;
  try { error = (await response.json()).error; } catch { /* not the server's own answer: a proxy's page */ }
  const message = error?.message ?? `HTTP status ${response.status} ${response.statusText}`.trim();
  return new ServerError(message, {
    status: response.status,
    param: error?.param ?? null,
    requestId: error?.request_id ?? response.headers.get("X-Request-Id"),
    retryAfter: Number.isNaN(seconds) ? null : seconds,
  });
}

/** The JSON of each server-sent event up to `[DONE]`; raises ServerError for an error event and a broken stream. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ServerError("The connection ended before the answer was complete.");
      const blocks = (text + value).replaceAll("\r\n", "\n").split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (!data.length) continue;
        if (data.join("\n") === "[DONE]") return;
        const event = JSON.parse(data.join("\n"));
        if (event.error) throw new ServerError(event.error.message, { requestId: event.error.request_id });
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw new ServerError("The connection broke off before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
