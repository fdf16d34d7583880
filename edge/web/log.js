// The conversation on the screen, and where it is scrolled to. In: entries. Out: elements in the log, calls of `acts`:
// {edit(index, text), remove(index), retry(index), copy(text), results(texts), again()}. Knows no server.

import { answerView, LiveAnswer, resultForm, resultView, systemView, userView } from "./entry_view.js";
import { $, button, h } from "./dom.js";
import { openCalls } from "./conversation.js";
import { say } from "./words.js";

const NEAR = 48; // pixels from the end that still count as the end

export class Log {
  #follows = true;

  constructor(acts) {
    this.acts = acts;
    this.log = $("log");
    this.scroller = $("scroller");
    this.scroller.addEventListener("scroll", () => {
      const left = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight;
      this.#follows = left < NEAR;
      $("latest").hidden = this.#follows;
    });
    $("latest").addEventListener("click", () => this.toEnd());
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
    if (entry.role === "system") return systemView(entry);
    if (entry.role === "tool") return resultView(entry);
    if (entry.role === "assistant") {
      return answerView(entry, { copy: this.acts.copy, retry: () => this.acts.retry(index) });
    }
    const view = userView(entry, {
      copy: this.acts.copy,
      remove: () => this.acts.remove(index),
      edit: () => this.#edit(view, entry, index),
    });
    return view;
  }

  // What can be done at the end: give results, or try once more.
  #tail(entries, failure) {
    const calls = openCalls(entries);
    const last = entries.at(-1);
    const parts = [];
    if (failure) parts.push(h("p", { class: "failure", dir: "auto" }, failure));
    if (calls.length) parts.push(resultForm(calls, this.acts.results));
    else if (failure || last?.role === "user" || last?.role === "tool") {
      parts.push(button(say("retry"), this.acts.again, "quiet"));
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
    const send = () => field.value.trim() && this.acts.edit(index, field.value.trim());
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Escape") leave();
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        send();
      }
    });
    const row = h("div", { class: "row" }, button("Cancel", leave, "quiet"), button(say("send"), send, "primary"));
    view.replaceChildren(h("div", { class: "editing" }, field, row));
    field.focus();
  }
}
