// One entry of a conversation on the screen. In: an entry, and what its buttons do. Out: an element.

import { MarkdownBlocks } from "./markdown.js";
import { button, h, icon, iconButton, lines, number } from "./dom.js";
import { say } from "./words.js";

const ENDINGS = {
	length: "The answer ended at its limit of length.",
	deadline: "The answer ended at its limit of time.",
	broken: "The answer broke off here.",
};

export function userView(entry, acts) {
	const files = (entry.files ?? []).map((file) => h("span", { class: "chip" }, icon("file"), file.name));
	const pictures = (entry.pictures ?? []).map(({ thumb, name }) => h("img", { src: thumb, alt: name, class: "picture" }));
	return h(
		"article",
		{ class: "entry user", "aria-label": "Your message" },
		pictures.length > 0 && h("div", { class: "chips" }, ...pictures),
		files.length > 0 && h("div", { class: "chips" }, ...files),
		entry.content && h("div", { class: "bubble" }, ...lines(entry.content)),
		tools(
			iconButton("edit", "Edit and send again", acts.edit),
			iconButton("copy", "Copy message", () => acts.copy(entry.content)),
			iconButton("trash", "Delete this question and its answer", acts.remove),
		),
	);
}

export function answerView(entry, acts) {
	const body = h("div", { class: "answer" });
	const thoughts = entry.reasoning && thoughtsView(entry.reasoning);
	if (entry.content) new MarkdownBlocks(body).finish(entry.content);
	const calls = (entry.tool_calls ?? []).map(callView);
	const notes = [
		entry.dropped && `${entry.dropped} earlier messages were left out, so that the conversation fits.`,
		entry.ended === "stopped" ? say("stopped") : ENDINGS[entry.ended],
	];
	return h(
		"article",
		{ class: "entry assistant", "aria-label": "Answer" },
		thoughts,
		body,
		...calls,
		...notes.filter(Boolean).map((note) => h("p", { class: "note" }, note)),
		tools(
			iconButton("copy", "Copy answer", () => acts.copy(entry.content)),
			iconButton("retry", "Answer again", acts.retry),
			entry.stats && h("span", { class: "stats" }, statsLine(entry.stats)),
		),
	);
}

const thoughtsView = (text) =>
	h("details", { class: "thoughts" }, h("summary", {}, say("thoughts")), h("div", { dir: "auto" }, text));

export class LiveAnswer {
	#blocks;
	#thoughts = null;
	#frame = 0;
	#text = "";

	constructor() {
		const body = (this.body = h("div", { class: "answer" }));
		const attributes = { class: "entry assistant", "aria-label": "Answer", "aria-busy": "true" };
		this.activity = h("div", { class: "activity" });
		this.element = h("article", attributes, body, this.activity);
		this.#blocks = new MarkdownBlocks(body);
	}

	grow(text, reasoning, drawn) {
		this.#text = text;
		if (reasoning) {
			if (!this.#thoughts) this.body.before((this.#thoughts = thoughtsView("")));
			this.#thoughts.lastChild.textContent = reasoning;
		}
		this.#frame ||= requestAnimationFrame(() => {
			this.#frame = 0;
			this.#blocks.grow(this.#text);
			drawn();
		});
	}

	// What is going on; a share from 0 to 1 is shown as a bar.
	says(text, share = null, ...more) {
		const bar = share === null ? null : h("progress", { max: 1, value: share, "aria-label": text });
		this.activity.replaceChildren(h("span", { dir: "auto" }, text), ...[bar, ...more].filter(Boolean));
		this.activity.hidden = !text;
	}
}

export function plainView(entry) {
	const name = entry.role === "tool" ? "Result" : "Instructions";
	const pre = h("pre", { dir: "auto", tabindex: "0" }, entry.content);
	return h("article", { class: "entry result", "aria-label": name }, head(name), pre);
}

function callView(call) {
	const pre = h("pre", { dir: "ltr", tabindex: "0" }, indented(call.function.arguments));
	return h("section", { class: "call", "aria-label": `Call of ${call.function.name}` }, head(call.function.name), pre);
}

export function resultForm(calls, send) {
	const fields = calls.map(() => h("textarea", { rows: 2, dir: "auto" }));
	const labelled = fields.map((field, index) => h("label", {}, `Result of ${calls[index].function.name}`, field));
	const act = button("Send results", () => send(fields.map((field) => field.value)), "primary");
	return h("section", { class: "results", "aria-label": "Results of tools" }, ...labelled, act);
}

const head = (name) => h("div", { class: "head" }, icon("tool"), h("strong", {}, name));
const tools = (...children) => h("div", { class: "tools" }, ...children);

function indented(text) {
	try {
		return JSON.stringify(JSON.parse(text), null, 2);
	} catch {
		return text;
	}
}

function statsLine({ read, written, cache_n: cached, predicted_per_second: speed, prompt_ms: ms }) {
	const counts = [`${number.format(written)} tokens`, `${number.format(read)} read`];
	if (speed === undefined) return counts.join(" · ");
	const share = Math.round((100 * cached) / read);
	return `${counts[0]} · ${speed.toFixed(1)} tok/s · ${counts[1]} in ${(ms / 1000).toFixed(1)} s · ${share} % from the cache`;
}
