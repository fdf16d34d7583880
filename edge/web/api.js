// The server. In: paths relative to the page, bodies. Out: JSON, or a stream's events. A key stays in memory.

let key = null;

export function setKey(value) {
	key = value || null;
}

export class ApiError extends Error {
	constructor(status, error = {}, retryAfter = null) {
		super(error.message || `The server answered with status ${status}.`);
		this.status = status; // 0: it could not be reached, or a stream broke
		this.code = error.code ?? null;
		this.retryAfter = retryAfter; // seconds
	}
}

async function request(path, body = null, kind = "application/json", signal = null) {
	const headers = { ...(body && { "content-type": kind }), ...(key && { authorization: `Bearer ${key}` }) };
	let response;
	try {
		response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal, cache: "no-store" });
	} catch (error) {
		if (signal?.aborted) throw error;
		throw new ApiError(0, { message: "The server cannot be reached." });
	}
	if (response.ok) return response;
	const told = await response.json().catch(() => ({})); // a proxy's may be something else
	throw new ApiError(response.status, told.error ?? told, Number(response.headers.get("retry-after")) || null);
}

export const forgetCache = () => request("page/forget", "{}").catch(() => {});

export async function getJson(path) {
	return (await request(path)).json();
}

// What /health says, whatever its status.
export async function health() {
	const response = await fetch("health", { cache: "no-store", signal: AbortSignal.timeout(4000) });
	return { ok: response.ok, ...(await response.json()) };
}

export async function readDocument(file) {
	const path = `page/read-document?name=${encodeURIComponent(file.name)}`;
	return (await request(path, file, "application/octet-stream")).json();
}

// The events of an answer. `alive` is called for whatever arrives, pings too.
export async function* streamed(path, body, signal, alive) {
	const response = await request(path, JSON.stringify(body), "application/json", signal);
	alive();
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
