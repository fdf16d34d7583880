// A kiosk forgets its visitor: after some time without input and without a running answer there is a warning that
// counts down, then everything is gone. In: events of the page. Out: forget(). Knows no conversation.

import { $ } from "./dom.js";
import { say } from "./words.js";

const INPUT = ["pointerdown", "pointermove", "keydown", "input", "compositionupdate", "wheel", "touchstart", "touchmove"];
const HARMFUL = ["contextmenu", "dragstart", "dragover", "drop", "gesturestart"];

export class Kiosk {
  #last = performance.now();

  // needs: {busy(), isFresh(), forget()}; times in seconds
  constructor(needs, { idle_seconds: idle = 90, idle_warning_seconds: warning = 20 }) {
    Object.assign(this, { needs, idle, warning: Math.min(warning, idle / 2) });
    this.dialog = $("idle");
    for (const name of INPUT) addEventListener(name, () => this.touch(), { capture: true, passive: true });
    this.#guard();
    $("idle-stay").addEventListener("click", () => this.touch());
    $("idle-forget").addEventListener("click", () => this.#forget());
    this.dialog.addEventListener("cancel", () => this.touch());
    setInterval(() => this.#tick(), 200);
  }

  touch() {
    this.#last = performance.now();
    // The button that was meant gets its click before the dialog is gone.
    if (this.dialog.open) setTimeout(() => this.dialog.open && this.dialog.close());
  }

  #tick() {
    if (this.needs.busy() || this.needs.isFresh()) this.#last = performance.now();
    const left = this.idle - (performance.now() - this.#last) / 1000;
    if (left <= 0) return this.#forget();
    if (left > this.warning) {
      if (this.dialog.open) this.dialog.close();
      return;
    }
    $("idle-title").textContent = say("there");
    $("idle-stay").textContent = say("stay");
    $("idle-forget").textContent = say("restart");
    $("idle-text").textContent = say("clearing", Math.ceil(left));
    if (!this.dialog.open) this.dialog.showModal();
  }

  #forget() {
    if (this.dialog.open) this.dialog.close();
    this.#last = performance.now();
    this.needs.forget();
  }

  // Back, zoom, menus and dropped files lead nowhere.
  #guard() {
    for (const name of HARMFUL) addEventListener(name, (event) => event.preventDefault(), { passive: false });
    addEventListener("wheel", (event) => event.ctrlKey && event.preventDefault(), { passive: false });
    addEventListener("keydown", (event) => {
      const zooms = (event.ctrlKey || event.metaKey) && ["+", "-", "=", "0"].includes(event.key);
      if (zooms || (event.altKey && event.key.startsWith("Arrow"))) event.preventDefault();
    });
    history.pushState(null, "");
    addEventListener("popstate", () => history.pushState(null, ""));
  }
}
