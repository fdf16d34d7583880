// The conversations of this browser. In: the storage, a file of messages. Out: open(conversation), such a file.

import { imported, newConversation, wireMessages } from "./conversation.js";
import { $, button, h, iconButton } from "./dom.js";
import { toast } from "./toast.js";

export class Sidebar {
	// needs: {storage, pictures, open(conversation), current(), system()}
	constructor(needs) {
		this.needs = needs;
		$("new").onclick = () => this.#leave();
		$("menu").onclick = () => this.toggle(true);
		$("shade").onclick = () => this.toggle(false);
		$("sidebar").onkeydown = (event) => {
			if (event.key === "Escape") this.toggle(false);
		};
		$("export").onclick = () => this.#export();
		$("import").onclick = () => $("choose-import").click();
		$("choose-import").onchange = () => this.#import();
	}

	toggle(open) {
		if (document.body.classList.contains("open") === open) return;
		document.body.classList.toggle("open", open);
		$("menu").setAttribute("aria-expanded", open);
		$(open ? "new" : "menu").focus();
	}

	async show() {
		const found = await this.needs.storage.all("conversations");
		const rows = found.sort((one, other) => other.updated - one.updated).map((conversation) => this.#row(conversation));
		$("conversations").replaceChildren(...rows);
		$("not-kept").hidden = this.needs.storage.lasting;
	}

	#leave(conversation) {
		this.needs.open(conversation);
		this.show();
		this.toggle(false);
		$("message").focus();
	}

	async #withPictures(entries) {
		const taken = [];
		for (const { urls, ...entry } of entries) {
			const pictures = [];
			for (const url of urls ?? []) pictures.push(await this.needs.pictures.take(url, "picture"));
			taken.push(pictures.length ? { ...entry, pictures } : entry);
		}
		return taken;
	}

	#row(conversation) {
		const name = conversation.title || "Untitled";
		const isCurrent = conversation.id === this.needs.current().id;
		const open = button(name, () => this.#leave(conversation), "open");
		Object.assign(open, { dir: "auto", ariaCurrent: isCurrent ? "true" : null });
		const remove = iconButton("trash", `Delete ${name}`, async () => {
			await this.needs.storage.remove("conversations", conversation.id);
			if (isCurrent) this.needs.open();
			await this.show();
			$("new").focus();
			toast("The conversation was deleted.", async () => {
				await this.needs.storage.put("conversations", conversation);
				if (isCurrent) this.needs.open(conversation);
				await this.show();
			});
		});
		return h("li", {}, open, remove);
	}

	async #export() {
		const { entries } = this.needs.current();
		if (!entries.length) return toast("There is nothing to export yet.");
		const { pictures } = this.needs;
		await pictures.load(entries).catch((error) => toast(error.message));
		const whole = entries.map((entry) => ({ ...entry, pictures: entry.pictures?.filter(pictures.url) }));
		const text = `${JSON.stringify(wireMessages(whole, this.needs.system(), pictures.url), null, 1)}\n`;
		const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
		h("a", { href, download: "conversation.json" }).click();
		setTimeout(() => URL.revokeObjectURL(href), 10000);
	}

	async #import() {
		const [file] = $("choose-import").files;
		if (!file) return;
		$("choose-import").value = "";
		try {
			const conversation = newConversation(await this.#withPictures(imported(await file.text())));
			await this.needs.storage.put("conversations", conversation);
			this.#leave(conversation);
		} catch (error) {
			toast(error.message);
		}
	}
}
