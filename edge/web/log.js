// The conversation on the screen, and where it is scrolled to. In: entries. Out: elements in the log, calls of `acts`:
// edit(index, text), remove(index), retry(index), copy(text), results(texts), again(), done().

import { answerView, LiveAnswer, plainView, resultForm, userView } from "./entry_view.js";
import { $, button, h } from "./dom.js";
import { isSend } from "./composer.js";
import { openCalls } from "./conversation.js";
import { say } from "./words.js";

const NEAR = 48; // pixels from the end that still count as the end

export class Log {
	#follows = true;

	constructor(acts) {
		this.acts = acts;
		this.log = $("log");
		this.scroller = $("scroller");
		this.scroller.onscroll = () => {
			const { scrollHeight, scrollTop, clientHeight } = this.scroller;
			$("latest").hidden = this.#follows = scrollHeight - scrollTop - clientHeight < NEAR;
		};
		$("latest").onclick = () => this.toEnd();
	}

	show(entries, failure = null) {
		this.log.replaceChildren(...entries.map((entry, index) => this.#view(entry, index)));
		this.log.append(...this.#tail(entries, failure));
		this.follow();
	}

	live() {
		const answer = new LiveAnswer();
		this.log.querySelector(".tail")?.remove();
		this.log.append(answer.element);
		this.toEnd();
		return answer;
	}

	follow() {
		if (this.#follows) this.toEnd();
	}

	toEnd() {
		this.#follows = true;
		this.scroller.scrollTop = this.scroller.scrollHeight;
	}

	#view(entry, index) {
		const { copy } = this.acts;
		const act = (name) => () => this.#do(name, index);
		if (entry.role === "tool" || entry.role === "system") return plainView(entry);
		if (entry.role === "assistant") return answerView(entry, { copy, retry: act("retry") });
		const view = userView(entry, { copy, remove: act("remove"), edit: () => this.#edit(view, entry, index) });
		return view;
	}

	// What was pressed is gone after it.
	#do(name, ...given) {
		this.acts[name](...given);
		this.acts.done();
	}

	// What can be done at the end: give results, or try once more.
	#tail(entries, failure) {
		const calls = openCalls(entries);
		const last = entries.at(-1);
		const parts = [];
		if (failure) parts.push(h("p", { class: "failure", dir: "auto" }, failure));
		if (calls.length) parts.push(resultForm(calls, (texts) => this.#do("results", texts)));
		else if (failure || last?.role === "user" || last?.role === "tool") {
			parts.push(button(say("retry"), () => this.#do("again")));
		}
		return parts.length ? [h("div", { class: "entry tail" }, ...parts)] : [];
	}

	#edit(view, entry, index) {
		const field = h("textarea", { dir: "auto", "aria-label": "Your message", rows: 3 });
		field.value = entry.content;
		const leave = () => {
			view.replaceWith(this.#view(entry, index));
			this.log.children[index]?.querySelector("button")?.focus();
		};
		const send = () => field.value.trim() && this.#do("edit", index, field.value.trim());
		field.onkeydown = (event) => {
			if (event.key === "Escape" && !event.isComposing) leave();
			if (!isSend(event)) return;
			event.preventDefault();
			send();
		};
		const row = h("div", { class: "row" }, button("Cancel", leave), button(say("send"), send, "primary"));
		view.replaceChildren(h("div", { class: "editing" }, field, row));
		field.focus();
	}
}
