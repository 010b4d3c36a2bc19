/** Requests to the page's server, with the API key and with errors in words. */

const STORED = "faquant-api-key";
let key = "";
try {
  key = sessionStorage.getItem(STORED) ?? "";
} catch {
  // The browser has no storage for this page, so the key is lost when the page is closed.
}

export const hasKey = () => key !== "";

export function setKey(value) {
  key = value;
  try {
    sessionStorage.setItem(STORED, value);
  } catch {
    // As above.
  }
}

/** An error for the user. status: the HTTP status; 0 if there was no response or an incomplete one. */
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Sends a GET, or a POST if there is a body. Throws a Problem, or an AbortError if the signal aborts. */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: JSON.stringify(body),
      cache: "no-store",
      signal,
    });
  } catch (error) {
    throw asProblem(error, "The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The data of a response's server-sent events, until [DONE]. Throws a Problem if the connection ends earlier. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const lost = "The connection was lost before the answer was complete.";
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Problem(lost);
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } catch (error) {
    throw asProblem(error, lost);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function asProblem(error, message) {
  return error instanceof Problem || error.name === "AbortError" ? error : new Problem(message);
}

async function refusal(response) {
  const told = await response.json().then((body) => body.error?.message, () => undefined);
  return new Problem(words(response, told), response.status);
}

function words(response, told) {
  const wait = Number(response.headers.get("Retry-After"));
  const again = wait > 0 ? ` Try again in ${wait} ${wait === 1 ? "second" : "seconds"}.` : " Try again later.";
  switch (response.status) {
    case 401:
      return "The server asks for an API key.";
    case 429:
      return `The server is busy.${again}`;
    case 503:
      return (told ?? "The server does not answer requests now.") + again;
    default:
      return told ?? `The server answered with status ${response.status}.`;
  }
}
