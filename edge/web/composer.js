// Where a message is written. In: keys, files. Out: sends and stops.

import { readDocument } from "./api.js";
import { $, h, icon, iconButton, number } from "./dom.js";
import { say } from "./words.js";

// An Enter that ends the input of a Chinese or Japanese word is not a wish to send.
export function isSend(event) {
	return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

export class Composer {
	#files = []; // {name, text, tokens, state, element}
	#running = false;

	// needs: {chat, announcer, maxContext()}; attaches: files are welcome
	constructor(needs, { attaches, maxChars, placeholder }) {
		Object.assign(this, { needs, maxChars, placeholder });
		this.action = $("action");
		this.action.onclick = () => (this.#running ? needs.chat.stop() : this.#send());
		document.addEventListener("keydown", (event) => {
			if (event.key === "Escape" && this.#running && !document.querySelector("dialog[open]")) needs.chat.stop();
		});
		$("attach").hidden = !attaches;
		if (attaches) this.#takeFiles();
		this.clear();
	}

	// A new field each time: a browser keeps with a field what can be undone.
	clear() {
		const field = $("message").cloneNode();
		field.value = "";
		field.placeholder = this.placeholder ?? say("placeholder");
		if (this.maxChars) field.maxLength = this.maxChars;
		$("message").replaceWith(field);
		this.field = field;
		field.onkeydown = (event) => {
			if (!isSend(event)) return;
			event.preventDefault();
			if (!this.#running) this.#send();
		};
		field.oninput = () => this.#show();
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

	#send() {
		const text = this.field.value.trim();
		const files = this.#files.filter((file) => file.state === "read");
		if (this.#files.some((file) => file.state === "reading") || (!text && !files.length)) return;
		const hadFocus = document.activeElement === this.field;
		this.clear();
		if (hadFocus) this.field.focus();
		this.needs.chat.send(text, files.map(({ name, text: content, tokens }) => ({ name, text: content, tokens })));
	}

	#show() {
		const waits = this.#files.some((file) => file.state === "reading");
		const label = say(this.#running ? "stop" : "send");
		this.action.replaceChildren(icon(this.#running ? "stop" : "send"), h("span", { class: "unseen" }, label));
		this.action.title = label;
		this.action.classList.toggle("running", this.#running);
		const ready = this.field.value.trim() !== "" || this.#files.some((file) => file.state === "read");
		this.action.setAttribute("aria-disabled", !this.#running && (waits || !ready));
	}

	#takeFiles() {
		const choose = $("choose-files");
		$("attach").onclick = () => choose.click();
		choose.onchange = () => {
			this.#add(choose.files);
			choose.value = "";
		};
		document.onpaste = (event) => {
			if (event.clipboardData.files.length) event.preventDefault();
			this.#add(event.clipboardData.files);
		};
		document.ondragover = (event) => event.preventDefault();
		document.ondrop = (event) => {
			event.preventDefault();
			this.#add(event.dataTransfer.files);
		};
	}

	#add(files) {
		for (const file of files) this.#read(file);
		if (files.length) this.field.focus();
	}

	async #read(file) {
		const words = h("span", {}, "reading…");
		const drop = iconButton("close", `Remove ${file.name}`, () => {
			this.#files = this.#files.filter((other) => other !== kept);
			kept.element.remove();
			this.#show();
			this.field.focus();
		});
		const kept = { name: file.name, state: "reading" };
		kept.element = h("span", { class: "chip" }, icon("file"), h("span", {}, file.name), words, drop);
		this.#files.push(kept);
		$("files").append(kept.element);
		this.#show();
		try {
			Object.assign(kept, await readDocument(file), { state: "read" });
			const tooLong = kept.tokens > this.needs.maxContext();
			kept.element.classList.toggle("bad", tooLong);
			words.textContent = `${number.format(kept.tokens)} tokens${tooLong ? ", more than the context has" : ""}`;
		} catch (error) {
			kept.state = "failed";
			kept.element.classList.add("bad");
			words.textContent = error.message;
		}
		this.needs.announcer.say(`${file.name}: ${words.textContent}`);
		this.#show();
	}
}
