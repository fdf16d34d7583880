// Elements and icons. In: names, attributes, children. Out: nodes. Text is always text: nothing here reads markup.

const PATHS = {
	send: "M12 19V5M5 12l7-7 7 7",
	stop: "M7 7h10v10H7z",
	plus: "M12 5v14M5 12h14",
	menu: "M4 7h16M4 12h16M4 17h16",
	edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
	copy: "M9 9h11v11H9zM6 15H4V4h11v2",
	retry: "M20 11a8 8 0 1 0-2.3 6M20 4v7h-7",
	trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
	clip: "M20 11l-8.5 8.5a5 5 0 0 1-7-7L13 4a3.3 3.3 0 0 1 4.7 4.7L9.4 17a1.6 1.6 0 0 1-2.3-2.3l7.4-7.4",
	close: "M6 6l12 12M18 6L6 18",
	sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6a2 2 0 1 0 0 4 2 2 0 1 0 0-4M9 14a2 2 0 1 0 0 4 2 2 0 1 0 0-4",
	down: "M12 5v14M5 12l7 7 7-7",
	save: "M12 4v11M7 11l5 5 5-5M5 20h14",
	open: "M12 16V5M7 9l5-5 5 5M5 20h14",
	tool: "M8 7l-5 5 5 5M16 7l5 5-5 5",
	camera: "M4 8h4l2-3h4l2 3h4v11H4zM12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 1 0 0-7",
	file: "M6 3h8l4 4v14H6zM14 3v4h4",
};

export const $ = (id) => document.getElementById(id);
export const number = new Intl.NumberFormat("en");

export function h(tag, attributes = {}, ...children) {
	const node = document.createElement(tag);
	for (const [name, value] of Object.entries(attributes)) {
		if (typeof value === "function") node.addEventListener(name, value);
		else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
	}
	node.append(...children.filter(Boolean));
	return node;
}

export function icon(name) {
	const [svg, path] = ["svg", "path"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
	path.setAttribute("d", PATHS[name]);
	svg.setAttribute("viewBox", "0 0 24 24");
	svg.setAttribute("aria-hidden", "true");
	svg.append(path);
	return svg;
}

// A button with an icon alone; its label is read out, and shown on hovering.
export function iconButton(name, label, click) {
	return h("button", { class: "icon", "aria-label": label, title: label, click }, icon(name));
}

export const button = (label, click, kind = "quiet") => h("button", { class: kind, click }, label);

// Lines of what a person wrote, each in its own direction.
export const lines = (text) => text.split("\n").map((line) => h("div", { class: "line", dir: "auto" }, line || h("br")));
