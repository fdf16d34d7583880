// Where a message is written. In: keys, files. Out: send(text, files), stop(). An Enter that ends the input of a
// Chinese or Japanese word is not a wish to send.

import { readDocument } from "./api.js";
import { $, fillIcons, h, icon, iconButton } from "./dom.js";
import { say } from "./words.js";

const READABLE = ".txt,.md,.pdf,.docx,.html,.htm";
const number = new Intl.NumberFormat("en");

export class Composer {
  #files = []; // {name, text, tokens, state, element}
  #running = false;

  // needs: {send(text, files), stop(), maxContext(), announce(text)}; attaches: files are welcome
  constructor(needs, { attaches, maxChars, placeholder }) {
    Object.assign(this, { needs, maxChars, placeholder });
    this.action = $("action");
    this.action.addEventListener("click", () => (this.#running ? needs.stop() : this.#send()));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#running && !document.querySelector("dialog[open]")) needs.stop();
    });
    $("attach").hidden = !attaches;
    if (attaches) this.#takeFiles();
    this.clear();
  }

  // A field of its own for each visitor: a browser keeps what was undone with the field.
  clear() {
    const field = $("message").cloneNode();
    field.value = "";
    field.placeholder = this.placeholder ?? say("placeholder");
    if (this.maxChars) field.maxLength = this.maxChars;
    $("message").replaceWith(field);
    this.field = field;
    field.addEventListener("keydown", (event) => {
      const composes = event.isComposing || event.keyCode === 229;
      if (event.key !== "Enter" || event.shiftKey || composes) return;
      event.preventDefault();
      if (!this.#running) this.#send();
    });
    field.addEventListener("input", () => this.#show());
    this.#files = [];
    $("files").replaceChildren();
    this.#show();
  }

  get isEmpty() {
    return !this.field.value && !this.#files.length;
  }

  set running(value) {
    this.#running = value;
    this.#show();
  }

  fill(text) {
    this.field.value = text;
    this.#show();
    this.field.focus();
  }

  #send() {
    const text = this.field.value.trim();
    const files = this.#files.filter((file) => file.state === "read");
    if (this.#files.some((file) => file.state === "reading") || (!text && !files.length)) return;
    const hadFocus = document.activeElement === this.field;
    this.clear();
    if (hadFocus) this.field.focus();
    this.needs.send(text, files.map(({ name, text: content, tokens }) => ({ name, text: content, tokens })));
  }

  #show() {
    const { value } = this.field;
    // Where the style sheet cannot make the field grow with its text, its rows do.
    if (!CSS.supports("field-sizing", "content")) this.field.rows = Math.min(8, value.split("\n").length);
    const waits = this.#files.some((file) => file.state === "reading");
    const label = say(this.#running ? "stop" : "send");
    this.action.replaceChildren(icon(this.#running ? "stop" : "send"), h("span", {}, label));
    this.action.title = label;
    this.action.classList.toggle("running", this.#running);
    const ready = value.trim() !== "" || this.#files.some((file) => file.state === "read");
    this.action.setAttribute("aria-disabled", String(!this.#running && (waits || !ready)));
    const left = this.maxChars ? this.maxChars - value.length : Infinity;
    $("left").textContent = left < this.maxChars / 5 ? `${left}` : "";
  }

  #takeFiles() {
    const choose = $("choose-files");
    choose.accept = READABLE;
    $("attach").addEventListener("click", () => choose.click());
    choose.addEventListener("change", () => {
      this.#add([...choose.files]);
      choose.value = "";
    });
    document.addEventListener("paste", (event) => this.#taken(event, event.clipboardData));
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      this.#taken(event, event.dataTransfer);
    });
  }

  #taken(event, data) {
    if (!data?.files.length) return;
    event.preventDefault();
    this.#add([...data.files]);
  }

  #add(chosen) {
    for (const file of chosen) this.#read(file);
    this.field.focus();
  }

  async #read(file) {
    const words = h("span", { class: "chip-state" }, "reading…");
    const drop = iconButton("close", `Remove ${file.name}`, () => {
      this.#files = this.#files.filter((other) => other !== kept);
      kept.element.remove();
      this.#show();
      this.field.focus();
    });
    const kept = { name: file.name, state: "reading" };
    kept.element = h("span", { class: "chip" }, icon("file"), h("span", { class: "name" }, file.name), words, drop);
    this.#files.push(kept);
    $("files").append(kept.element);
    this.#show();
    try {
      Object.assign(kept, await readDocument(file), { state: "read" });
      const room = this.needs.maxContext();
      const tooLong = room && kept.tokens > room;
      words.textContent = `${number.format(kept.tokens)} tokens${tooLong ? `, more than the ${number.format(room)} that fit` : ""}`;
      kept.element.classList.toggle("bad", Boolean(tooLong));
      this.needs.announce(`${kept.name} was read: ${words.textContent}.`);
    } catch (error) {
      kept.state = "failed";
      kept.element.classList.add("bad");
      words.textContent = error.message;
      this.needs.announce(`${file.name} could not be read. ${error.message}`);
    }
    this.#show();
  }
}
