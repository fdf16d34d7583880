// One answer, however many tries it takes. In: a body for chat completions, and somebody to tell. Out: a GrowingAnswer
// that is over. A full server is asked again after the time it named, a loading one once it is ready, and one that wants
// a key once there is one. Knows no element.

import { ApiError, health, streamed } from "./api.js";
import { GrowingAnswer } from "./answer.js";

const SILENT_MS = 4500; // told within five seconds
const SLOW_PINGS_MS = 7500; // for a server whose pings are known to be five seconds apart
const FULL_S = 5; // between tries, if a full server names no time
const LOADING_MS = 1000;

export const pause = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

// told: {waits(), grows(answer), silent(seconds), full(seconds left, try now), loading(progress), key(): Promise}
export async function ask(body, told, signal) {
  for (;;) {
    try {
      return await once(body, told, signal);
    } catch (error) {
      signal.throwIfAborted();
      if (error.status === 429) await countDown(error.retryAfter ?? FULL_S, told, signal);
      else if (error.status === 503 && error.code === "loading") await untilLoaded(told, signal);
      else if (error.status === 401) await told.key();
      else throw error;
    }
  }
}

async function once(body, told, signal) {
  const answer = new GrowingAnswer();
  let last = performance.now();
  let limit = SILENT_MS;
  let wasSilent = false;
  const alive = () => {
    if (wasSilent) {
      limit = SLOW_PINGS_MS;
      wasSilent = false;
      told.silent(0);
    }
    last = performance.now();
  };
  const clock = setInterval(() => {
    const ms = performance.now() - last;
    if (ms < limit) return;
    wasSilent = true;
    told.silent(Math.max(5, Math.round(ms / 1000)));
  }, 250);
  told.waits();
  try {
    for await (const chunk of streamed("v1/chat/completions", body, signal, alive)) {
      answer.push(chunk);
      told.grows(answer);
    }
    return answer;
  } catch (error) {
    error.answer = answer; // what there was of it
    throw error;
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
    const state = await health().catch(() => null);
    if (state?.ok) return;
    if (state?.status && state.status !== "loading") throw new ApiError(503, { message: `The server is ${state.status}.` });
    told.loading(state?.progress ?? null);
    await pause(LOADING_MS, signal);
  }
}
