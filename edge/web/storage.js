// Conversations and settings of this browser. In and out: plain objects. Without IndexedDB they live as long as the page.

const NAME = "edge-chat";
const STORES = ["conversations", "settings", "pictures"];

export class Storage {
	lasting = false;
	#db = null;
	#memory = Object.fromEntries(STORES.map((store) => [store, new Map()]));

	async open() {
		try {
			const opening = indexedDB.open(NAME, 2);
			opening.onupgradeneeded = () => {
				const { result: db } = opening;
				for (const store of STORES) db.objectStoreNames.contains(store) || db.createObjectStore(store, { keyPath: "id" });
			};
			this.#db = await done(opening);
			this.#db.onversionchange = () => this.#db.close();
			this.lasting = true;
		} catch {
			// Refused.
		}
	}

	async all(store) {
		const found = (await this.#run(store, "readonly", (table) => table.getAll())) ?? [];
		return [...found, ...this.#memory[store].values()];
	}

	async put(store, value) {
		const kept = await this.#run(store, "readwrite", (table) => table.put(value));
		if (kept === undefined) this.#memory[store].set(value.id, structuredClone(value));
	}

	async remove(store, id) {
		this.#memory[store].delete(id);
		await this.#run(store, "readwrite", (table) => table.delete(id));
	}

	// Undefined if there is no database, or it refuses (full, or gone).
	async #run(store, mode, act) {
		try {
			return await done(act(this.#db.transaction(store, mode).objectStore(store)));
		} catch {
			this.lasting = false;
		}
	}
}

const done = (request) =>
	new Promise((resolve, reject) => {
		request.onsuccess = () => resolve(request.result);
		request.onerror = () => reject(request.error);
		request.onblocked = () => reject(new Error("another tab has an older page"));
	});

// Whatever a visitor may have left behind.
export function wipe() {
	try {
		localStorage.clear();
		sessionStorage.clear();
		indexedDB.deleteDatabase(NAME);
	} catch {
		// Refused by the browser: then nothing is there.
	}
}
