// The line under the conversation: model, context, cache, memory. In: /page/status.json, stats of answers. Out: text.

import { getJson } from "./api.js";
import { $ } from "./dom.js";

const EVERY_MS = 10000;
const number = new Intl.NumberFormat("en");

export class Status {
  value = {};

  constructor(changed) {
    this.changed = changed;
    setInterval(() => document.hidden || this.refresh(), EVERY_MS);
  }

  async refresh() {
    try {
      this.value = await getJson("page/status.json");
    } catch (error) {
      this.value = { ...this.value, state: error.status ? "refused" : "unreachable" };
    }
    this.changed(this.value);
  }

  // entries: of the open conversation, whose last answer knows how much of the context is used
  show(entries) {
    const { model, max_context: room, rss_bytes: memory, running = 0, waiting = 0, state } = this.value;
    const stats = entries.findLast((entry) => entry.stats)?.stats;
    const used = stats ? stats.read + stats.written : 0;
    $("model").textContent = state === "unreachable" ? "Server not reachable" : (model ?? "");
    $("context").hidden = $("context-text").hidden = !room;
    $("context").max = room || 1;
    $("context").value = used;
    $("context-text").textContent = room ? `${number.format(used)} of ${number.format(room)} tokens` : "";
    $("memory").textContent = memory ? `${(memory / 1e9).toFixed(1)} GB` : "";
    $("queue").textContent = waiting || running > 1 ? `${running} running, ${waiting} waiting` : "";
  }
}
