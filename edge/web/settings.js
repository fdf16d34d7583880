// What a user may set for all conversations, and the server's key. In: the storage, the dialogs. Out: a plain object.

import { setKey } from "./api.js";
import { $ } from "./dom.js";

const TEXTS = ["system", "tools"];
const NUMBERS = ["temperature", "max_tokens"];
const field = (name) => $(`set-${name}`);

export class Settings {
	value = { id: "settings" };

	constructor(storage) {
		this.storage = storage;
		$("open-settings").onclick = () => this.#open();
		$("settings-cancel").onclick = () => $("settings").close();
		$("settings-save").onclick = () => this.#save();
	}

	async load() {
		this.value = (await this.storage.all("settings"))[0] ?? this.value;
	}

	get sampling() {
		const set = NUMBERS.filter((name) => Number.isFinite(this.value[name]));
		return Object.fromEntries(set.map((name) => [name, this.value[name]]));
	}

	get tools() {
		return this.value.tools ? JSON.parse(this.value.tools) : [];
	}

	showDefaults(sampling = {}) {
		for (const name of NUMBERS) field(name).placeholder = sampling[name] ?? "model’s own";
	}

	#open() {
		for (const name of [...TEXTS, ...NUMBERS]) field(name).value = this.value[name] ?? "";
		$("settings-problem").textContent = "";
		$("settings").showModal();
	}

	#save() {
		const next = { id: "settings" };
		for (const name of TEXTS) next[name] = field(name).value.trim();
		for (const name of NUMBERS) next[name] = field(name).value === "" ? null : field(name).valueAsNumber;
		try {
			if (next.tools && !Array.isArray(JSON.parse(next.tools))) throw new Error("it is something else");
		} catch (error) {
			$("settings-problem").textContent = `The tools are not a JSON list: ${error.message}`;
			return;
		}
		this.value = next;
		this.storage.put("settings", next);
		$("settings").close();
	}
}

let asking = null;

// Asks for the server's key, once for all who want it; rejects when the user has none.
export const askKey = () => (asking ??= keyOfUser().finally(() => (asking = null)));

function keyOfUser() {
	const dialog = $("key");
	const enter = () => field("key").value.trim() && dialog.close("given");
	$("key-save").onclick = enter;
	$("key-cancel").onclick = () => dialog.close("");
	field("key").onkeydown = (event) => {
		if (event.key === "Enter") enter();
	};
	dialog.returnValue = "";
	dialog.showModal();
	return new Promise((resolve, reject) => {
		dialog.onclose = () => {
			setKey(field("key").value.trim());
			field("key").value = "";
			if (dialog.returnValue) resolve();
			else reject(new Error("no key"));
		};
	});
}
