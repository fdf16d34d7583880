// One answer, however many tries it takes. In: a body for chat completions, and somebody to tell. A full server is asked
// again after the time it named, a loading one once it is ready, and one that wants a key once there is one.

import { health, streamed } from "./api.js";
import { GrowingAnswer } from "./answer.js";

const SILENT_MS = 4000; // told within five seconds; pings come every second
const DEAD_MS = 60000; // nothing comes any more
const FULL_S = 5; // between tries, if a full server names no time

const pause = (ms, signal) =>
	new Promise((resolve, reject) => {
		const timer = setTimeout(resolve, ms);
		signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
	});

// told: waits(), grows(answer), silent(seconds, isNew), full(seconds left, try now), loading(progress), key(): Promise
export async function ask(body, told, signal) {
	for (;;) {
		try {
			return await once(body, told, signal);
		} catch (error) {
			signal.throwIfAborted();
			if (error.status === 429) await countDown(error.retryAfter ?? FULL_S, told, signal);
			else if (error.code === "loading") await untilLoaded(told.loading, signal);
			else if (error.status === 401) await told.key();
			else throw error;
		}
	}
}

async function once(body, told, signal) {
	const answer = new GrowingAnswer();
	const dead = new AbortController();
	let last = performance.now();
	let isSilent = false;
	const alive = () => {
		if (isSilent) told.silent(0, true);
		isSilent = false;
		last = performance.now();
	};
	const clock = setInterval(() => {
		const ms = performance.now() - last;
		if (ms < SILENT_MS) return;
		if (ms > DEAD_MS) dead.abort();
		told.silent(Math.round(ms / 1000), !isSilent);
		isSilent = true;
	}, 250);
	told.waits();
	try {
		const either = AbortSignal.any([signal, dead.signal]);
		for await (const chunk of streamed("v1/chat/completions", body, either, alive)) {
			answer.push(chunk);
			told.grows(answer);
		}
	} finally {
		clearInterval(clock);
	}
}

async function countDown(seconds, told, signal) {
	const skip = new AbortController();
	for (let left = Math.ceil(seconds); left > 0 && !skip.signal.aborted; left--) {
		told.full(left, () => skip.abort());
		await pause(1000, AbortSignal.any([signal, skip.signal])).catch(() => signal.throwIfAborted());
	}
}

export async function untilLoaded(told, signal) {
	for (;;) {
		const state = await health().catch(() => ({}));
		if (state.ok) return;
		told(state.progress ?? null);
		await pause(1000, signal);
	}
}
