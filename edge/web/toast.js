// Short notes over the page, which go by themselves. In: a text, and what takes back what it tells.

import { $, button, h } from "./dom.js";

export function toast(text, undo = null) {
	const note = h("div", { class: "toast", role: "status" }, h("span", {}, text));
	if (undo) note.append(button("Undo", () => (undo(), note.remove())));
	$("toasts").replaceChildren(note);
	setTimeout(() => note.remove(), 10000);
}

// A page that came over plain HTTP from another machine may not copy.
export function copy(text) {
	const copying = navigator.clipboard?.writeText(text) ?? Promise.reject();
	copying.then(() => toast("Copied."), () => toast("The browser does not let this page copy."));
}
