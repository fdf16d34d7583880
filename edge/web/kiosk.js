// A kiosk forgets its visitor after a time without input or a running answer, and warns before.
// In: events of the page. Out: forget().

import { $ } from "./dom.js";
import { say } from "./words.js";

const INPUT = "pointerdown pointermove keydown input compositionupdate wheel touchstart touchmove".split(" ");
const HARMFUL = "contextmenu dragstart dragover drop".split(" ");

export class Kiosk {
	#last = performance.now();

	// needs: busy(), isFresh(), forget(); times in seconds
	constructor(needs, { idle_seconds: idle = 90, idle_warning_seconds: warning = 20 }) {
		Object.assign(this, { needs, idle, warning: Math.min(warning, idle / 2), dialog: $("idle") });
		for (const name of INPUT) addEventListener(name, (event) => this.#input(event), { capture: true, passive: true });
		for (const name of HARMFUL) addEventListener(name, (event) => event.preventDefault());
		$("idle-stay").onclick = () => this.#stay();
		$("idle-forget").onclick = () => this.#forget();
		setInterval(() => this.#tick(), 200);
		this.#hold();
	}

	#input({ key, target }) {
		if (!target.closest?.("#idle > *") || (key && !["Enter", " ", "Tab"].includes(key))) this.#stay();
	}

	#stay() {
		this.#last = performance.now();
		this.dialog.close();
	}

	#tick() {
		if (this.needs.busy() || this.needs.isFresh()) this.#last = performance.now();
		const left = this.idle - (performance.now() - this.#last) / 1000;
		if (left <= 0) return this.#forget();
		if (left > this.warning) return;
		$("idle-title").textContent = say("there");
		$("idle-stay").textContent = say("stay");
		$("idle-forget").textContent = say("restart");
		$("idle-text").textContent = say("clearing", Math.ceil(left));
		if (!this.dialog.open) this.dialog.showModal();
	}

	#forget() {
		this.dialog.close();
		this.#last = performance.now();
		this.needs.forget();
	}

	#hold() {
		addEventListener("wheel", (event) => event.ctrlKey && event.preventDefault(), { passive: false });
		addEventListener("keydown", (event) => {
			if (event.ctrlKey && "+-=0".includes(event.key)) event.preventDefault();
		});
		history.pushState(null, "");
		addEventListener("popstate", () => history.pushState(null, ""));
	}
}
