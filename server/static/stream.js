// The server's API: one chat completion as a stream of chunks, and every failure in words.

/** A request that failed. `message` is a sentence for the reader. */
export class Problem extends Error {
  constructor(message, { wantsKey = false } = {}) {
    super(message);
    this.wantsKey = wantsKey;
  }
}

/** The name of the served model. Throws `Problem`. */
export async function servedModel(key) {
  const response = await ask("v1/models", { headers: headers(key) });
  const list = await response.json().catch(() => null);
  const name = list?.data?.[0]?.id;
  if (typeof name !== "string") throw new Problem("The server names no model.");
  return name;
}

/** The chunks of a chat completion. Throws `Problem`, and `AbortError` when `signal` aborts. */
export async function* completion(body, key, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: headers(key),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new Problem(`The answer broke off. ${said(chunk.error)}`);
    yield chunk;
  }
  throw new Problem("The connection ended before the answer was complete.");
}

/** Data of server-sent events; comments and other fields are skipped. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(brokenOff);
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      yield* parts.filter((part) => part.startsWith("data: ")).map((part) => part.slice(6));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Problem("The server sent something that is no chat completion.");
  }
}

function brokenOff(error) {
  if (error.name === "AbortError") throw error;
  throw new Problem("The connection broke before the answer was complete.");
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

function headers(key) {
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

/** What a status other than 200 means, with the server's own words where it has some. */
async function refusal(response) {
  const error = (await response.json().catch(() => null))?.error ?? {};
  const words = said(error);
  if (error.code === "context_length_exceeded") {
    return new Problem(`This conversation is too long for the model: start a new chat. ${words}`);
  }
  switch (response.status) {
    case 400:
      return new Problem(`The server refused the request. ${words}`);
    case 401:
    case 403:
      return new Problem(`This server wants an API key. ${words}`, { wantsKey: true });
    case 429:
      return new Problem(`The server is busy. ${words}${waiting(response)}`);
    case 503:
    case 504:
      return new Problem(`The server is not ready. ${words}${waiting(response)}`);
    default:
      return new Problem(`The server answered with status ${response.status}. ${words}`);
  }
}

function said(error) {
  return typeof error.message === "string" ? error.message : "";
}

function waiting(response) {
  const seconds = Number(response.headers.get("retry-after"));
  return seconds > 0 ? ` Retry after ${seconds} s.` : "";
}
