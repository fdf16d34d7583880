// The line under the conversation: model, context, memory. In: /page/status.json, stats of answers. Out: text.

import { getJson } from "./api.js";
import { $, number } from "./dom.js";

const EVERY_MS = 10000;

export class Status {
	value = {};

	constructor(changed) {
		this.changed = changed;
		setInterval(() => document.hidden || this.refresh().catch(() => {}), EVERY_MS);
	}

	async refresh() {
		try {
			this.value = await getJson("page/status.json");
		} catch (error) {
			this.value.model = error.message;
			throw error;
		} finally {
			this.changed();
		}
	}

	// entries: of the open conversation, whose last answer knows how much of the context is used
	show(entries) {
		const { model, max_context: room, rss_bytes: memory } = this.value;
		const stats = entries.findLast((entry) => entry.stats)?.stats;
		const used = stats ? stats.read + stats.written : 0;
		$("model").textContent = model ?? "";
		$("context").hidden = !room;
		$("context").value = room ? used / room : 0;
		$("context-text").textContent = room ? `${number.format(used)} of ${number.format(room)} tokens` : "";
		$("memory").textContent = memory ? `${(memory / 1e9).toFixed(1)} GB` : "";
	}
}
