// Markdown as nodes. In: text of a model, which is not trusted. Out: blocks. Markup in it is shown as text, but for a few
// harmless tags, and all passes DOMPurify. While a text grows, only its last block is made anew.

import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";
import { h, iconButton, lines } from "./dom.js";
import { copy } from "./toast.js";

const TAGS =
	"p br strong em b i del code pre a ul ol li blockquote h1 h2 h3 h4 h5 h6 table thead tbody tr th td hr sup sub kbd";
const HARMLESS = /^<(?:br\s*\/?|\/?(?:b|i|sub|sup|kbd))>$/i;
const CONFIG = {
	ALLOWED_TAGS: TAGS.split(" "),
	ALLOWED_ATTR: ["href", "title", "align", "start"],
	ALLOW_DATA_ATTR: false,
	ALLOW_ARIA_ATTR: false,
	ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
	RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) =>
	text.replace(/[&<>"']/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[sign]);

let hasLinks = true;

// A kiosk has nowhere to go.
export function withoutLinks() {
	hasLinks = false;
}

const marked = new Marked({
	breaks: true,
	renderer: {
		html: ({ text }) => (HARMLESS.test(text.trim()) ? text : escaped(text)),
		checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
		// A picture is not fetched; whoever wants to see it has its address.
		image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
	},
});

globalThis.DOMPurify.addHook("afterSanitizeAttributes", (node) => {
	if (node.nodeName !== "A") return;
	if (!hasLinks) node.removeAttribute("href");
	if (!node.hasAttribute("href")) return;
	node.setAttribute("target", "_blank");
	node.setAttribute("rel", "noopener noreferrer");
});

function nodeOf(token) {
	if (token.type === "code") return codeBlock(token);
	const block = h("div", { class: `block ${token.type}`, dir: "auto" });
	if (token.type === "html") block.append(...lines(token.text.trim()));
	else block.append(globalThis.DOMPurify.sanitize(marked.parser([token]), CONFIG));
	if (token.type === "table") Object.assign(block, { tabIndex: 0, role: "region", ariaLabel: "Table" });
	return block;
}

function codeBlock({ text, lang }) {
	const language = (lang ?? "").trim().split(/\s+/)[0];
	const act = iconButton("copy", "Copy code", () => copy(text));
	const pre = h("pre", { dir: "ltr", tabindex: "0", role: "region", "aria-label": "Code" }, h("code", {}, text));
	return h("div", { class: "block code" }, h("div", { class: "head" }, h("span", {}, language), act), pre);
}

// Blocks of a text that grows, inside one element.
export class MarkdownBlocks {
	#settled = 0; // characters of the text whose blocks are final
	#kept = []; // raw texts of final blocks
	#last = []; // nodes of what follows them

	constructor(element) {
		this.element = element;
	}

	grow(text) {
		const tokens = marked.lexer(text.replace(/\r\n?/g, "\n").slice(this.#settled));
		const end = tokens.findLastIndex((token) => token.type !== "space");
		for (const node of this.#last) node.remove();
		this.#last = [];
		tokens.forEach((token, index) => {
			const settles = index < end;
			if (settles) this.#settled += token.raw.length;
			if (token.type === "space" || token.type === "def") return;
			const node = nodeOf(token);
			this.element.append(node);
			if (settles) this.#kept.push(token.raw);
			else this.#last.push(node);
		});
	}

	// The whole text once more: what was said at the end (a link's address) may be needed at the beginning.
	finish(text) {
		const tokens = marked.lexer(text).filter((token) => token.type !== "space");
		const same = tokens.every((token, index) => token.type !== "def" && (this.#kept[index] ?? token.raw) === token.raw);
		if (same && this.#kept.length + this.#last.length === tokens.length) return this.grow(text);
		this.element.replaceChildren(...tokens.filter((token) => token.type !== "def").map(nodeOf));
	}
}

// What a screen reader should say of Markdown.
export function spoken(text) {
	return text
		.replace(/```[^\n]*\n?/g, " ")
		.replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1")
		.replace(/^\s*[-#*+>]+\s+/gm, "")
		.replace(/[*_`~|]+/g, "")
		.trim();
}
