// The conversation that is open: questions, answers, and everything that changes them. In: what the user does. Out: the
// log, announcements, saved conversations. Knows the server through `ask` alone.

import { ApiError } from "./api.js";
import { newConversation, NO_RESULT, openCalls, titleOf, withoutTurn, wireMessages } from "./conversation.js";
import { ask } from "./turn.js";
import { button } from "./dom.js";
import { say } from "./words.js";

const SAVE_MS = 1500; // of an answer that is being written

export class Chat {
  conversation = newConversation();
  #running = null; // AbortController of the running answer

  // needs: {log, announcer, settings(), save(conversation), changed(), askKey()}
  constructor(needs) {
    this.needs = needs;
  }

  get running() {
    return this.#running !== null;
  }

  get entries() {
    return this.conversation.entries;
  }

  open(conversation = newConversation()) {
    this.stop();
    this.#running = null;
    this.conversation = conversation;
    this.needs.announcer.clear();
    this.needs.log.show(this.entries);
    this.needs.log.toEnd();
    this.needs.changed();
  }

  send(content, files = []) {
    this.#giveResults([]);
    return this.#ask([...this.entries, { role: "user", content, ...(files.length ? { files } : {}) }]);
  }

  edit(index, content) {
    return this.#ask([...this.entries.slice(0, index), { ...this.entries[index], content }]);
  }

  // Answers anew what the answer at an index answered.
  retry(index) {
    return this.#ask(this.entries.slice(0, index));
  }

  again() {
    const last = this.entries.at(-1);
    return this.#ask(last?.ended === "broken" ? this.entries.slice(0, -1) : this.entries);
  }

  results(texts) {
    this.#giveResults(texts);
    return this.#ask(this.entries);
  }

  stop() {
    this.#running?.abort();
  }

  remove(index) {
    this.#set(withoutTurn(this.entries, index));
    this.needs.log.show(this.entries);
  }

  restore(entries) {
    this.#set(entries);
    this.needs.log.show(this.entries);
  }

  #giveResults(texts) {
    const results = openCalls(this.entries).map((call, index) => ({
      role: "tool",
      tool_call_id: call.id,
      content: texts[index]?.trim() || NO_RESULT,
    }));
    this.conversation.entries = [...this.entries, ...results];
  }

  #set(entries) {
    this.conversation.entries = entries;
    this.conversation.title ||= titleOf(entries);
    this.conversation.updated = Date.now();
    this.needs.save(this.conversation);
    this.needs.changed();
  }

  async #ask(entries) {
    if (this.#running) return;
    const { log, announcer } = this.needs;
    const conversation = this.conversation;
    const running = (this.#running = new AbortController());
    this.#set(entries);
    log.show(entries);
    const live = log.live();
    announcer.begin();
    const told = this.#told(live, conversation, entries);
    let ended = [entries, null];
    try {
      const answer = await ask(this.#body(entries), told, running.signal);
      if (this.conversation === conversation) announcer.grow(answer.content, true);
      ended = [[...entries, answer.entry()], null];
    } catch (error) {
      ended = this.#failed(entries, error, told.answer, running.signal.aborted);
    }
    if (this.#running === running) this.#running = null;
    if (this.conversation !== conversation) {
      return; // the user has left it; what there is of the answer was saved as it grew
    }
    this.#set(ended[0]);
    log.show(...ended);
    announcer.say(ended[1]);
  }

  #failed(entries, error, answer, wasStopped) {
    const kept = answer?.started ? [...entries, { ...answer.entry(), ended: wasStopped ? "stopped" : "broken" }] : entries;
    if (wasStopped) {
      this.needs.announcer.say(say("stopped"));
      return [kept, answer?.started ? null : say("stopped")];
    }
    if (kept !== entries) delete kept.at(-1).tool_calls; // half a call is none
    return [kept, this.#inWords(error)];
  }

  #inWords(error) {
    if (!(error instanceof ApiError)) {
      console.error(error);
      return say("broken");
    }
    if (this.needs.settings().kiosk) {
      if (error.code === "context_length_exceeded") return say("full");
      return say(error.status === 0 && !error.code ? "unreachable" : "broken");
    }
    return error.message;
  }

  #body(entries) {
    const { system, model, sampling, tools } = this.needs.settings();
    return {
      ...(model ? { model } : {}),
      messages: wireMessages(entries, system),
      stream: true,
      stream_options: { include_usage: true },
      return_progress: true,
      timings_per_token: true,
      ...sampling,
      ...(tools?.length ? { tools } : {}),
    };
  }

  #told(live, conversation, entries) {
    const { log, announcer, askKey } = this.needs;
    let saved = performance.now();
    const told = {
      answer: null,
      waits: () => live.says(say("waiting")),
      grows: (answer) => {
        told.answer = answer;
        if (answer.started) live.says("");
        else if (answer.progress?.total) {
          const { processed, total } = answer.progress;
          live.says(`${say("reading")} ${Math.round((100 * processed) / total)} %`, processed / total);
        }
        live.grow(answer.content, () => log.follow());
        if (this.conversation === conversation) announcer.grow(answer.content);
        if (answer.started && performance.now() - saved > SAVE_MS) {
          saved = performance.now();
          const partial = { ...answer.entry(), ended: "broken", tool_calls: undefined };
          this.needs.save({ ...conversation, entries: [...entries, partial] });
        }
      },
      silent: (seconds) => {
        live.says(seconds ? say("silent", seconds) : "");
        if (seconds === 5) announcer.say(say("silent", seconds));
        log.follow();
      },
      full: (seconds, now) => live.says(say("busy", seconds), null, button(say("retry"), now, "quiet")),
      loading: (progress) => live.says(say("loading"), progress),
      key: askKey,
    };
    return told;
  }
}
