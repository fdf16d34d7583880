// Where a message is written. In: keys, files. Out: sends and stops.

import { readDocument } from "./api.js";
import { hasCamera, photograph } from "./camera.js";
import { $, h, icon, iconButton, number } from "./dom.js";
import { isPicture, picturesOf } from "./pictures.js";
import { toast } from "./toast.js";
import { say } from "./words.js";

const DOCUMENTS = ".txt,.md,.pdf,.docx,.html,.htm";

// An Enter that ends the input of a Chinese or Japanese word is not a wish to send.
export function isSend(event) {
	return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

export class Composer {
	#files = []; // {name, text, tokens, picture, state, element}
	#running = false;

	// needs: {chat, announcer, pictures, maxContext(), sees()}; attaches: documents are welcome; shows: so are pictures
	constructor(needs, { attaches, shows, maxChars, placeholder }) {
		Object.assign(this, { needs, attaches, shows, maxChars, placeholder });
		this.action = $("action");
		this.action.onclick = () => (this.#running ? needs.chat.stop() : this.#send());
		document.addEventListener("keydown", (event) => {
			if (event.key === "Escape" && this.#running && !document.querySelector("dialog[open]")) needs.chat.stop();
		});
		if (attaches || shows) this.#takeFiles();
		this.refresh();
		this.clear();
	}

	// What is welcome, as far as the server has told.
	refresh() {
		const sees = this.#sees;
		$("attach").hidden = !this.attaches && !sees;
		$("camera").hidden = !sees || !hasCamera();
		$("choose-files").accept = [this.attaches && DOCUMENTS, sees && "image/*"].filter(Boolean).join(",");
		for (const [id, word] of [["attach", "attach"], ["camera", "camera"]]) $(id).ariaLabel = $(id).title = say(word);
	}

	// What the server takes of pictures; null: none.
	get #sees() {
		return (this.shows && this.needs.sees()) || null;
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
		const [pictures, documents] = [true, false].map((is) => files.filter(({ picture }) => Boolean(picture) === is));
		this.needs.chat.send(
			text,
			documents.map(({ name, text: content, tokens }) => ({ name, text: content, tokens })),
			pictures.map(({ picture: { id, name, thumb } }) => ({ id, name, thumb })),
		);
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
		$("camera").onclick = () => this.#photograph();
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

	async #photograph() {
		try {
			const file = await photograph();
			if (file) this.#add([file]);
		} catch (error) {
			toast(error.message);
		}
		this.field.focus();
	}

	async #read(file) {
		const sees = this.#sees;
		if (!this.attaches && !(sees && isPicture(file))) return;
		const words = h("span", {}, say("opening"));
		const drop = iconButton("close", say("remove", file.name), () => {
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
			if (sees && isPicture(file)) {
				await this.#readPicture(file, kept, sees);
				words.textContent = kept.picture.note ?? "";
			} else {
				Object.assign(kept, await readDocument(file));
				const tooLong = kept.tokens > this.needs.maxContext();
				kept.element.classList.toggle("bad", tooLong);
				words.textContent = `${number.format(kept.tokens)} tokens${tooLong ? ", more than the context has" : ""}`;
			}
			kept.state = "read";
		} catch (error) {
			Object.assign(kept, { state: "failed", isPicture: false });
			kept.element.classList.add("bad");
			words.textContent = error.message;
		}
		this.needs.announcer.say(`${file.name}: ${words.textContent}`);
		this.#show();
	}

	// Throws an Error in words.
	async #readPicture(file, kept, { most, max_bytes: maxBytes }) {
		const others = this.#files.filter((other) => other !== kept && other.isPicture);
		const count = picturesOf(this.needs.chat.entries).length + others.length;
		if (most && count >= most) throw new Error(say(most === 1 ? "onePicture" : "fewPictures", most));
		kept.isPicture = true;
		kept.picture = await this.needs.pictures.add(file, maxBytes);
		kept.element.firstChild.replaceWith(h("img", { src: kept.picture.thumb, alt: "" }));
	}
}
