// Pictures of messages. In: files, a camera's frames. Out: entries {id, name, thumb, note} to show and to save, and data
// URLs for the server. The whole picture is kept as long as its conversation: each turn sends it again.

import { say } from "./words.js";

const READ = /^image\/(png|jpeg|webp|gif|bmp|tiff)$/; // by the server as they are
const THUMB = 320; // pixels, of the longer side
const SMALLEST = 64; // scaled down further, nothing would be seen

export const isPicture = (file) => file.type.startsWith("image/");

export class Pictures {
	#urls = new Map(); // id -> data URL

	// storage: where pictures outlive the page; null: nowhere
	constructor(storage = null) {
		this.storage = storage;
	}

	// Throws an Error in words.
	async add(file, maxBytes) {
		const id = crypto.getRandomValues(new Uint32Array(3)).join("-");
		let bitmap = null;
		try {
			bitmap = await createImageBitmap(file);
		} catch {
			throw new Error(say("unreadable"));
		}
		const fits = READ.test(file.type) && file.size <= maxBytes;
		const blob = fits ? file : await scaled(bitmap, maxBytes, file.size);
		const thumb = await urlOf(await jpeg(bitmap, Math.min(1, THUMB / Math.max(bitmap.width, bitmap.height)), 0.8));
		bitmap.close();
		this.#urls.set(id, await urlOf(blob));
		await this.storage?.put("pictures", { id, blob });
		return { id, name: file.name, thumb, ...(!fits && { note: say("scaled") }) };
	}

	// Makes what `url` needs for these entries. Throws an Error in words.
	async load(entries) {
		const wanted = picturesOf(entries).filter(({ id }) => !this.#urls.has(id));
		if (!wanted.length) return;
		const kept = new Map((await this.storage?.all("pictures"))?.map(({ id, blob }) => [id, blob]));
		for (const { id } of wanted) {
			if (!kept.has(id)) throw new Error(say("gone"));
			this.#urls.set(id, await urlOf(kept.get(id)));
		}
	}

	url = ({ id }) => this.#urls.get(id);

	async take(url, name) {
		return this.add(new File([await blobOf(url)], name, { type: url.slice(5, url.indexOf(";")) }), Infinity);
	}

	forget() {
		this.#urls.clear();
	}

	// Removes what no conversation has any more.
	async sweep(conversations) {
		const used = new Set(conversations.flatMap(({ entries }) => picturesOf(entries)).map(({ id }) => id));
		for (const { id } of (await this.storage?.all("pictures")) ?? []) {
			if (!used.has(id)) await this.storage.remove("pictures", id);
		}
	}
}

export const picturesOf = (entries) => entries.flatMap((entry) => entry.pictures ?? []);

async function scaled(bitmap, maxBytes, size) {
	for (let scale = Math.min(1, Math.sqrt(maxBytes / size)); ; scale *= 0.8) {
		const blob = await jpeg(bitmap, scale, 0.92);
		if (blob.size <= maxBytes) return blob;
		if (Math.max(bitmap.width, bitmap.height) * scale < SMALLEST) throw new Error(say("unreadable"));
	}
}

function jpeg(bitmap, scale, quality) {
	const canvas = document.createElement("canvas");
	canvas.width = Math.max(1, Math.round(bitmap.width * scale));
	canvas.height = Math.max(1, Math.round(bitmap.height * scale));
	const paper = canvas.getContext("2d");
	paper.fillStyle = "#fff"; // under what is transparent
	paper.fillRect(0, 0, canvas.width, canvas.height);
	paper.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
	return new Promise((resolve, reject) => {
		canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error(say("unreadable")))), "image/jpeg", quality);
	});
}

function urlOf(blob) {
	const reader = new FileReader();
	reader.readAsDataURL(blob);
	return new Promise((resolve, reject) => {
		reader.onload = () => resolve(reader.result);
		reader.onerror = () => reject(new Error(say("unreadable")));
	});
}

async function blobOf(url) {
	const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
	return new Blob([bytes]);
}
