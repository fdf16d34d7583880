// Conversations and settings of this browser. In and out: plain objects. Where the browser refuses IndexedDB, and in a
// kiosk, they live as long as the page.

const NAME = "edge-chat";

export class Storage {
  lasting = false;
  #db = null;
  #memory = { conversations: new Map(), settings: new Map() };

  async open() {
    try {
      const opening = indexedDB.open(NAME, 1);
      opening.onupgradeneeded = () => {
        opening.result.createObjectStore("conversations", { keyPath: "id" });
        opening.result.createObjectStore("settings", { keyPath: "id" });
      };
      this.#db = await done(opening);
      this.#db.onversionchange = () => this.#db.close();
      this.lasting = true;
    } catch {
      this.#db = null;
    }
    return this;
  }

  async all(store) {
    const found = (await this.#run(store, "readonly", (table) => table.getAll())) ?? [];
    return [...found, ...this.#memory[store].values()];
  }

  async put(store, value) {
    const kept = await this.#run(store, "readwrite", (table) => table.put(value));
    if (kept === undefined) this.#memory[store].set(value.id, structuredClone(value));
    else this.#memory[store].delete(value.id);
  }

  async remove(store, id) {
    this.#memory[store].delete(id);
    await this.#run(store, "readwrite", (table) => table.delete(id));
  }

  // Undefined if there is no database, or it refuses (full, or gone).
  async #run(store, mode, act) {
    if (!this.#db) return undefined;
    try {
      return await done(act(this.#db.transaction(store, mode).objectStore(store)));
    } catch {
      this.lasting = false;
      return undefined;
    }
  }
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
}

// Whatever an earlier visitor, or a page before this one, may have left behind.
export function wipe() {
  const forget = [
    () => localStorage.clear(),
    () => sessionStorage.clear(),
    () => indexedDB.deleteDatabase(NAME),
    () => caches.keys().then((names) => names.forEach((name) => caches.delete(name)), () => {}),
  ];
  for (const act of forget) {
    try {
      act();
    } catch {
      // Refused by the browser: then nothing is there.
    }
  }
}
