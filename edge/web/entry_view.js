// One entry of a conversation on the screen. In: an entry, and what its buttons do. Out: an element.

import { MarkdownBlocks } from "./markdown.js";
import { h, icon, iconButton, lines } from "./dom.js";
import { say } from "./words.js";

const number = new Intl.NumberFormat("en");
const ENDINGS = {
  length: "The answer ended at its limit of length.",
  deadline: "The answer ended at its limit of time.",
  stopped: null, // in words of the visitor's language
  broken: "The answer broke off here.",
};

export function userView(entry, acts) {
  const files = (entry.files ?? []).map((file) => h("span", { class: "chip" }, icon("file"), file.name));
  const text = entry.content ? h("div", { class: "bubble" }, ...lines(entry.content)) : null;
  return h(
    "article",
    { class: "entry user", "aria-label": "Your message" },
    files.length ? h("div", { class: "chips" }, ...files) : null,
    text,
    tools(
      iconButton("edit", "Edit and send again", acts.edit),
      iconButton("copy", "Copy message", () => acts.copy(entry.content)),
      iconButton("trash", "Delete this question and its answer", acts.remove),
    ),
  );
}

export function answerView(entry, acts) {
  const body = h("div", { class: "answer" });
  if (entry.content) new MarkdownBlocks(body).finish(entry.content);
  const calls = (entry.tool_calls ?? []).map(callView);
  const notes = [
    entry.dropped ? `${entry.dropped} earlier messages were left out, so that the conversation fits.` : null,
    entry.ended === "stopped" ? say("stopped") : ENDINGS[entry.ended],
  ];
  return h(
    "article",
    { class: "entry assistant", "aria-label": "Answer" },
    body,
    ...calls,
    ...notes.filter(Boolean).map((note) => h("p", { class: "note" }, note)),
    tools(
      iconButton("copy", "Copy answer", () => acts.copy(entry.content)),
      iconButton("retry", "Answer again", acts.retry),
      entry.stats ? h("span", { class: "stats" }, statsLine(entry.stats)) : null,
    ),
  );
}

// An answer that is being written.
export class LiveAnswer {
  #blocks;
  #frame = 0;
  #text = "";

  constructor() {
    this.body = h("div", { class: "answer" });
    this.activity = h("div", { class: "activity" });
    this.element = h(
      "article",
      { class: "entry assistant live", "aria-label": "Answer", "aria-busy": "true" },
      this.body,
      this.activity,
    );
    this.#blocks = new MarkdownBlocks(this.body);
  }

  grow(text, drawn) {
    this.#text = text;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#blocks.grow(this.#text);
      drawn();
    });
  }

  // What is going on instead of text; a share from 0 to 1 is shown as a bar.
  says(text, share = null, ...more) {
    const bar = share === null ? null : h("progress", { max: 1, value: share, "aria-label": text });
    this.activity.replaceChildren(...[h("span", { dir: "auto" }, text), bar, ...more].filter(Boolean));
    this.activity.hidden = !text;
  }
}

export function systemView(entry) {
  return h("details", { class: "entry system" }, h("summary", {}, "Instructions"), ...lines(entry.content));
}

export function resultView(entry) {
  const pre = h("pre", { dir: "auto", tabindex: "0" }, entry.content);
  return h("article", { class: "entry result", "aria-label": "Result of a tool" }, head("Result"), pre);
}

function callView(call) {
  const pre = h("pre", { dir: "ltr", tabindex: "0" }, indented(call.function.arguments));
  return h("section", { class: "call", "aria-label": `Call of ${call.function.name}` }, head(call.function.name), pre);
}

// Fields for the results of calls: this server runs no tools, the person at the page does.
export function resultForm(calls, send) {
  const fields = calls.map((call) =>
    h("textarea", { rows: 2, dir: "auto", "aria-label": `Result of ${call.function.name}` }),
  );
  const labelled = fields.map((field, index) =>
    h("label", {}, h("span", {}, `What does ${calls[index].function.name} return?`), field),
  );
  const go = () => send(fields.map((field) => field.value));
  const act = h("button", { type: "button", class: "primary", click: go }, calls.length > 1 ? "Send results" : "Send result");
  return h("section", { class: "results", "aria-label": "Results of tools" }, ...labelled, act);
}

const head = (name) => h("div", { class: "call-head" }, icon("tool"), h("strong", {}, name));
const tools = (...children) => h("div", { class: "tools" }, ...children);

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

export function statsLine({ read, written, cached, perSecond, readMs }) {
  const share = read ? Math.round((100 * cached) / read) : 0;
  return [
    `${number.format(written)} tokens`,
    perSecond ? `${perSecond.toFixed(1)} tok/s` : null,
    `${number.format(read)} read${readMs === null ? "" : ` in ${(readMs / 1000).toFixed(1)} s`}`,
    `${share} % from the cache`,
  ]
    .filter(Boolean)
    .join(" · ");
}
