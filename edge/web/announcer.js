// What a screen reader is told: sentences of an answer as they are complete, never single tokens.
// In: the text of an answer as it grows, single notes. Out: lines of a polite live region.

import { h } from "./dom.js";
import { spoken } from "./markdown.js";

const KEPT = 4;
const segmenter = new Intl.Segmenter(undefined, { granularity: "sentence" });

export class Announcer {
	#told = 0; // characters of the answer

	constructor(region) {
		this.region = region;
	}

	say(text) {
		if (!text) return;
		this.region.append(h("p", { dir: "auto" }, text));
		while (this.region.childElementCount > KEPT) this.region.firstElementChild.remove();
	}

	begin() {
		this.#told = 0;
	}

	// A sentence is over once the next one has begun.
	grow(text, isWhole = false) {
		const sentences = [...segmenter.segment(text.slice(this.#told))].map((part) => part.segment);
		const said = (isWhole ? sentences : sentences.slice(0, -1)).join("");
		this.#told += said.length;
		this.say(spoken(said));
	}
}
