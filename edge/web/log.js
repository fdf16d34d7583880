// The conversation on the screen, and where it is scrolled to. In: entries. Out: elements in the log, calls of `acts`:
// edit(entry, text), remove(entry), retry(entry), copy(text), results(texts), again(), done().

import { answerView, LiveAnswer, plainView, resultForm, userView } from "./entry_view.js";
import { $, button, h } from "./dom.js";
import { isSend } from "./composer.js";
import { openCalls } from "./conversation.js";
import { say } from "./words.js";

const NEAR = 48; // pixels from the end that still count as the end

export class Log {
	#follows = true;
	#views = new WeakMap(); // entry -> element

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
		const wanted = [...entries.map((entry) => this.#views.get(entry) ?? this.#view(entry)), ...this.#tail(entries, failure)];
		// What is there already is not touched: the focus may be in it.
		wanted.forEach((node, index) => {
			const there = this.log.children[index];
			if (there !== node) this.log.insertBefore(node, there ?? null);
		});
		while (this.log.childElementCount > wanted.length) this.log.lastChild.remove();
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

	#view(entry) {
		const acts = {
			copy: this.acts.copy,
			retry: () => this.#do("retry", entry),
			remove: () => this.#do("remove", entry),
			edit: () => this.#edit(view, entry),
		};
		const view = { user: userView, assistant: answerView }[entry.role]?.(entry, acts) ?? plainView(entry);
		this.#views.set(entry, view);
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

	#edit(view, entry) {
		const field = h("textarea", { dir: "auto", "aria-label": "Your message", rows: 3 });
		field.value = entry.content;
		const leave = () => {
			view.replaceWith(this.#view(entry));
			this.acts.done();
		};
		const send = () => field.value.trim() && this.#do("edit", entry, field.value.trim());
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
