// Elements and icons. In: names, attributes, children. Out: nodes. Text is always text: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";
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
  check: "M5 12l5 5 9-10",
  tool: "M14 6a4 4 0 0 1 5-1l-3 3 1 1 3-3a4 4 0 0 1-5.5 5.2L8 18a2 2 0 0 1-3-3l6.8-6.5A4 4 0 0 1 14 6z",
  file: "M6 3h8l4 4v14H6zM14 3v4h4",
};

export const $ = (id) => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(path);
  return svg;
}

// A button with an icon alone; its label is read out, and shown when it is pointed at.
export function iconButton(name, label, click) {
  return h("button", { type: "button", class: "icon", "aria-label": label, title: label, click }, icon(name));
}

export function button(label, click, kind = "") {
  return h("button", { type: "button", class: kind, click }, label);
}

// Lines of what a person wrote, each in its own direction.
export function lines(text) {
  return text.split("\n").map((line) => h("p", { dir: "auto" }, line || "\u200b"));
}

export function fillIcons(root) {
  for (const node of root.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
}
