// The conversations of this browser. In: the storage, files of a user. Out: open(conversation), a file with messages.

import { exported, imported, newConversation, titleOf } from "./conversation.js";
import { $, button, h, iconButton } from "./dom.js";

export class Sidebar {
  // needs: {storage, open(conversation), current(), system(), toast(text, undo)}
  constructor(needs) {
    this.needs = needs;
    $("new").addEventListener("click", () => this.#leave(newConversation()));
    $("menu").addEventListener("click", () => this.toggle());
    $("shade").addEventListener("click", () => this.toggle(false));
    $("sidebar").addEventListener("keydown", (event) => event.key === "Escape" && this.toggle(false));
    $("export").addEventListener("click", () => this.#export());
    $("import").addEventListener("click", () => $("choose-import").click());
    $("choose-import").addEventListener("change", () => this.#import());
  }

  toggle(open = !document.body.classList.contains("open")) {
    const changes = document.body.classList.toggle("open", open) !== ($("menu").getAttribute("aria-expanded") === "true");
    $("menu").setAttribute("aria-expanded", String(open));
    if (changes) (open ? $("new") : $("menu")).focus();
  }

  async show() {
    const found = await this.needs.storage.all("conversations");
    const rows = found.sort((one, other) => other.updated - one.updated).map((conversation) => this.#row(conversation));
    $("conversations").replaceChildren(...rows);
    $("not-kept").hidden = this.needs.storage.lasting;
  }

  #leave(conversation) {
    this.needs.open(conversation);
    if (document.body.classList.contains("open")) this.toggle(false);
    $("message").focus();
  }

  #row(conversation) {
    const name = conversation.title || "Untitled";
    const isCurrent = conversation.id === this.needs.current().id;
    const open = h("button", { type: "button", class: "open", dir: "auto", "aria-current": isCurrent && "true" }, name);
    open.addEventListener("click", () => this.#leave(conversation));
    const remove = iconButton("trash", `Delete ${name}`, async () => {
      await this.needs.storage.remove("conversations", conversation.id);
      if (isCurrent) this.needs.open(newConversation());
      await this.show();
      $("new").focus();
      this.needs.toast("The conversation was deleted.", async () => {
        await this.needs.storage.put("conversations", conversation);
        if (isCurrent) this.needs.open(conversation);
        await this.show();
      });
    });
    return h("li", {}, open, remove);
  }

  #export() {
    const { entries, title } = this.needs.current();
    if (!entries.length) return this.needs.toast("There is nothing to export yet.");
    const blob = new Blob([exported(entries, this.needs.system())], { type: "application/json" });
    const href = URL.createObjectURL(blob);
    const name = (title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
    h("a", { href, download: `${name}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10000);
  }

  async #import() {
    const [file] = $("choose-import").files;
    if (!file) return;
    $("choose-import").value = "";
    try {
      const entries = imported(await file.text());
      const conversation = { ...newConversation(), entries, title: titleOf(entries) };
      await this.needs.storage.put("conversations", conversation);
      this.#leave(conversation);
    } catch (error) {
      this.needs.toast(error.message);
    }
  }
}

export function toast(text, undo = null) {
  const note = h("div", { class: "toast", role: "status" }, h("span", {}, text));
  if (undo) {
    note.append(button("Undo", () => (undo(), note.remove()), "quiet"));
  }
  $("toasts").replaceChildren(note);
  setTimeout(() => note.remove(), 10000);
}
