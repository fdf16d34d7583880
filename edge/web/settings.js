// What a user may set for all conversations, and the server's key. In: the storage, the dialogs. Out: a plain object.
// The key is in memory alone.

import { setKey } from "./api.js";
import { $ } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

export class Settings {
  value = { id: "settings", system: "", tools: "" };

  constructor(storage) {
    this.storage = storage;
    const dialog = $("settings");
    $("open-settings").addEventListener("click", () => {
      this.#fill();
      dialog.showModal();
    });
    $("settings-cancel").addEventListener("click", () => dialog.close());
    $("settings-save").addEventListener("click", () => this.#save() && dialog.close());
  }

  async load() {
    const found = (await this.storage.all("settings"))[0];
    if (found) this.value = found;
  }

  get sampling() {
    return Object.fromEntries(NUMBERS.filter((name) => Number.isFinite(this.value[name])).map((name) => [name, this.value[name]]));
  }

  get tools() {
    return this.value.tools ? JSON.parse(this.value.tools) : [];
  }

  showDefaults(sampling = {}) {
    for (const name of NUMBERS) $(`set-${name}`).placeholder = sampling?.[name] ?? "model’s own";
  }

  #fill() {
    for (const name of ["system", "tools", ...NUMBERS]) $(`set-${name}`).value = this.value[name] ?? "";
    this.#complain("");
  }

  #save() {
    const next = { ...this.value, system: $("set-system").value.trim(), tools: $("set-tools").value.trim() };
    try {
      if (next.tools && !Array.isArray(JSON.parse(next.tools))) throw new Error("a list is expected");
    } catch (error) {
      $("set-tools").focus();
      return this.#complain(`The tools are not a JSON list: ${error.message}`);
    }
    for (const name of NUMBERS) {
      const field = $(`set-${name}`);
      if (!field.checkValidity()) {
        field.focus();
        return this.#complain(`${name}: ${field.validationMessage}`);
      }
      next[name] = field.value === "" ? null : field.valueAsNumber;
    }
    this.value = next;
    this.storage.put("settings", next);
    return true;
  }

  #complain(text) {
    $("settings-problem").textContent = text;
    return false;
  }
}

// Asks for the server's key; resolves when there is one, rejects when the user has none.
export function askKey() {
  const dialog = $("key");
  return new Promise((resolve, reject) => {
    const enter = () => {
      const given = $("set-key").value.trim();
      if (!given) return;
      setKey(given);
      dialog.close("given");
    };
    const onEnter = (event) => event.key === "Enter" && !event.isComposing && enter();
    $("key-save").onclick = enter;
    $("key-cancel").onclick = () => dialog.close("");
    $("set-key").onkeydown = onEnter;
    dialog.onclose = () => {
      $("set-key").value = "";
      if (dialog.returnValue === "given") resolve();
      else reject(new Error("no key"));
    };
    dialog.returnValue = "";
    if (!dialog.open) dialog.showModal();
  });
}
