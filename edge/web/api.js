// The server. In: paths relative to the page, bodies. Out: JSON, or the events of a stream. Knows no element of the page.
// A key is kept in this module's memory alone.

let key = null;

export function setKey(value) {
  key = value || null;
}

export class ApiError extends Error {
  constructor(status, error = {}, retryAfter = null) {
    super(error.message || `The server answered with status ${status}.`);
    this.status = status; // 0: it could not be reached, or a stream broke
    this.code = error.code ?? null;
    this.figures = error;
    this.retryAfter = retryAfter; // seconds
  }
}

async function refused(response) {
  let error = {};
  try {
    const body = await response.json();
    error = body.error ?? body;
  } catch {
    // Not JSON: a proxy answered, and its status has to do.
  }
  const after = Number.parseFloat(response.headers.get("retry-after") ?? "");
  return new ApiError(response.status, error, Number.isFinite(after) ? after : null);
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  try {
    return await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, { message: "The server cannot be reached." });
  }
}

export async function getJson(path) {
  const response = await request(path);
  if (!response.ok) throw await refused(response);
  return response.json();
}

// What /health says, whatever its status: {status, progress, ...}.
export async function health() {
  const response = await request("health", { signal: AbortSignal.timeout(4000) });
  const body = await response.json().catch(() => ({}));
  return { ok: response.ok, ...body };
}

export async function readDocument(file) {
  const response = await request(`page/read-document?name=${encodeURIComponent(file.name)}`, {
    method: "POST",
    headers: { "content-type": "application/octet-stream" },
    body: file,
  });
  if (!response.ok) throw await refused(response);
  return response.json();
}

// The events of a streamed answer. `alive` is called for whatever arrives, pings too.
export async function* streamed(path, body, signal, alive) {
  const response = await request(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  alive();
  if (!response.ok) throw await refused(response);
  try {
    for await (const data of eventData(response.body, alive)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(0, event.error);
      yield event;
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
  }
  throw new ApiError(0, { message: "The connection ended before the answer did." });
}

// The "data:" of each event of a stream of bytes; comments are what pings are made of.
export async function* eventData(stream, alive = () => {}) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const whole of lines) {
        const line = whole.endsWith("\r") ? whole.slice(0, -1) : whole;
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
