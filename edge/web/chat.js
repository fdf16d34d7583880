// The conversation that is open, and everything that changes it. In: what the user does. Out: the log, announcements,
// saved conversations. Knows the server through `ask` alone.

import { ApiError } from "./api.js";
import { newConversation, openCalls, titleOf, withoutTurn, wireMessages } from "./conversation.js";
import { ask } from "./turn.js";
import { button } from "./dom.js";
import { say } from "./words.js";

const SAVE_MS = 1500; // of an answer that is being written

export class Chat {
	conversation = newConversation();
	#running = null; // AbortController of the running answer

	// needs: {log, announcer, pictures, settings(), save(conversation, isPart), changed(), askKey()}
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
		this.needs.announcer.region.replaceChildren();
		this.needs.log.show(this.entries);
		this.needs.log.toEnd();
		this.needs.changed();
	}

	send(content, files = [], pictures = []) {
		this.#giveResults([]);
		const more = { ...(files.length && { files }), ...(pictures.length && { pictures }) };
		return this.#ask([...this.entries, { role: "user", content, ...more }]);
	}

	edit(entry, content) {
		return this.#ask([...this.#before(entry), { ...entry, content }]);
	}

	retry(entry) {
		return this.#ask(this.#before(entry));
	}

	#before(entry) {
		return this.entries.slice(0, this.entries.indexOf(entry));
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

	remove(entry) {
		return !this.#running && this.restore(withoutTurn(this.entries, this.entries.indexOf(entry)));
	}

	restore(entries) {
		this.#set(entries);
		this.needs.log.show(entries);
		return true;
	}

	#giveResults(texts) {
		const results = openCalls(this.entries).map((call, index) => ({
			role: "tool",
			tool_call_id: call.id,
			content: texts[index]?.trim() || "No result was given.",
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
		const running = (this.#running = new AbortController());
		this.#set(entries);
		log.show(entries);
		const live = log.live();
		announcer.begin();
		const told = this.#told(live, running, entries);
		let ended, failure;
		try {
			await this.needs.pictures.load(entries);
			await ask(this.#body(entries), told, running.signal);
		} catch (error) {
			const wasStopped = running.signal.aborted;
			ended = wasStopped ? "stopped" : "broken";
			failure = wasStopped ? say("stopped") : this.#inWords(error);
		}
		if (this.#running !== running) return; // the user has left; what there is of the answer was saved as it grew
		this.#running = null;
		const { answer } = told;
		if (ended && answer) Object.assign(answer, { calls: [], reason: ended }); // half a call is none
		if (answer) announcer.grow(answer.content, true);
		announcer.say(failure);
		const has = answer && (answer.started || !ended);
		this.#set(has ? [...entries, answer.entry()] : entries);
		log.show(this.entries, has && ended === "stopped" ? null : failure);
	}

	#inWords(error) {
		if (!(error instanceof ApiError)) return error.constructor === Error ? error.message : say("broken");
		if (!this.needs.settings().kiosk) return error.message.replace(/^./, (letter) => letter.toUpperCase());
		if (error.code === "context_length_exceeded") return say("full");
		return say(error.status || error.code ? "broken" : "unreachable");
	}

	#body(entries) {
		const { system, sampling, tools } = this.needs.settings();
		return {
			messages: wireMessages(entries, system, this.needs.pictures.url),
			stream: true,
			stream_options: { include_usage: true },
			return_progress: true,
			timings_per_token: true,
			...sampling,
			...(tools.length && { tools }),
		};
	}

	#told(live, running, entries) {
		const { log, announcer, askKey } = this.needs;
		const { conversation } = this;
		const { kiosk } = this.needs.settings();
		let saved = performance.now();
		const told = {
			answer: null,
			waits: () => live.says(say("waiting")),
			grows: (answer) => {
				if (this.#running !== running) return;
				told.answer = answer;
				const call = answer.calls.at(-1);
				const speed = answer.timings?.predicted_per_second;
				const thinks = answer.reasoning && !answer.content && !call;
				const tells = thinks ? say("thinking") : speed && !kiosk ? `${speed.toFixed(1)} tok/s` : "";
				if (answer.started) live.says(call ? `${call.function.name}…` : tells);
				else if (answer.picture) {
					const { processed, total, seconds_left: left } = answer.picture;
					const rest = left === null ? "" : `, ${left > 90 ? say("minutes", Math.round(left / 60)) : say("seconds", Math.ceil(left))}`;
					live.says(`${say("looking", `${processed} / ${total}`)}${rest}`, processed / total);
				}
				else if (answer.progress?.total) {
					const { processed, total } = answer.progress;
					live.says(`${say("reading")} ${Math.round((100 * processed) / total)} %`, processed / total);
				}
				live.grow(answer.content, answer.reasoning, () => log.follow());
				announcer.grow(answer.content);
				if (!answer.started || performance.now() - saved < SAVE_MS) return;
				saved = performance.now();
				const part = { role: "assistant", content: answer.content, ended: "broken" };
				this.needs.save({ ...conversation, entries: [...entries, part] }, true);
			},
			silent: (seconds, isNew) => {
				live.says(seconds ? say("silent", seconds) : "");
				if (seconds && isNew) announcer.say(say("silent", seconds));
				log.follow();
			},
			full: (seconds, now) => live.says(say("busy", seconds), null, button(say("retry"), now)),
			loading: (progress) => live.says(say("loading"), progress),
			key: askKey,
		};
		return told;
	}
}
