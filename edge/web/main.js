// Puts the page together, as the server's configuration says.

import { forgetCache, getJson } from "./api.js";
import { Announcer } from "./announcer.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { $, button, icon } from "./dom.js";
import { Kiosk } from "./kiosk.js";
import { Log } from "./log.js";
import { withoutLinks } from "./markdown.js";
import { askKey, Settings } from "./settings.js";
import { Pictures } from "./pictures.js";
import { Sidebar } from "./sidebar.js";
import { Status } from "./status.js";
import { Storage, wipe } from "./storage.js";
import { copy, toast } from "./toast.js";
import { untilLoaded } from "./turn.js";
import { directionOf, nameOf, say, speak } from "./words.js";

const config = await withKey(() => getJson("page-config.json")).catch(() => ({}));
const kiosk = config.kiosk || new URLSearchParams(location.search).get("kiosk") === "1";
document.documentElement.classList.toggle("kiosk", Boolean(kiosk));
for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
if (config.title) $("title").textContent = document.title = config.title;

const storage = new Storage();
if (kiosk) {
	wipe();
	withoutLinks();
} else await storage.open();

let language = null;
const pictures = new Pictures(kiosk ? null : storage);
const announcer = new Announcer($("announcer"));
const settings = new Settings(storage);
if (!kiosk) await settings.load();
const status = new Status(() => {
	settings.showDefaults(status.value.sampling);
	status.show(chat.entries);
	composer.refresh();
});

const log = new Log({
	copy,
	edit: (...given) => chat.edit(...given),
	retry: (entry) => chat.retry(entry),
	again: () => chat.again(),
	results: (texts) => chat.results(texts),
	remove: (entry) => {
		const before = chat.entries;
		if (chat.remove(entry)) toast("The question and its answer were deleted.", () => chat.restore(before));
	},
	done: () => composer.field.focus(),
});

const chat = new Chat({
	log,
	announcer,
	pictures,
	askKey,
	settings: () => ({
		kiosk,
		system: [settings.value.system || config.system, language && `Answer in ${nameOf(language, "en")}.`]
			.filter(Boolean)
			.join("\n"),
		sampling: settings.sampling,
		tools: settings.tools,
	}),
	save: (conversation, isPart) => {
		if (!kiosk) storage.put("conversations", conversation).then(() => isPart || sidebar.show());
	},
	changed,
});

const composer = new Composer(
	{ chat, announcer, pictures, maxContext: () => status.value.max_context, sees: () => status.value.pictures },
	{ attaches: !kiosk, shows: config.pictures ?? !kiosk, maxChars: config.max_prompt_chars, placeholder: config.placeholder },
);
const sidebar = new Sidebar({
	storage,
	pictures,
	open: (conversation) => chat.open(conversation),
	current: () => chat.conversation,
	system: () => settings.value.system,
});

let wasRunning = false;

function changed() {
	const isFresh = chat.entries.length === 0;
	$("welcome").hidden = !isFresh;
	document.body.classList.toggle("fresh", isFresh);
	if (!kiosk) $("title").textContent = chat.conversation.title || config.title || "New chat";
	composer.running = chat.running;
	status.show(chat.entries);
	if (wasRunning && !chat.running) status.refresh().catch(() => {});
	wasRunning = chat.running;
}

function translate(tag) {
	language = tag;
	speak(tag);
	$("restart").lastChild.textContent = say("restart");
	$("greeting").textContent = config.greeting ?? say("greeting");
	document.documentElement.lang = tag ?? config.languages?.[0] ?? "en";
	document.documentElement.dir = directionOf(tag);
	for (const choice of $("languages").children) choice.setAttribute("aria-pressed", choice.value === tag);
	composer.refresh();
	composer.clear();
}

function welcome() {
	for (const text of config.suggestions ?? []) {
		const choice = button(text, () => chat.send(text), "suggestion");
		$("suggestions").append(Object.assign(choice, { dir: "auto" }));
	}
	if (!kiosk || !(config.languages?.length > 1)) return;
	for (const tag of config.languages) {
		const choice = button(nameOf(tag), () => translate(language === tag ? null : tag));
		$("languages").append(Object.assign(choice, { value: tag, lang: tag }));
	}
}

function forget() {
	for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close(""); // the camera's, too
	chat.open();
	pictures.forget();
	translate(null);
	$("toasts").replaceChildren();
	wipe();
	forgetCache();
	history.replaceState(null, "", location.pathname + (location.search.includes("kiosk=1") ? "?kiosk=1" : ""));
	composer.field.focus();
}

async function withKey(act) {
	for (;;) {
		try {
			return await act();
		} catch (error) {
			if (error.status !== 401) throw error;
			await askKey();
		}
	}
}

function loads(progress) {
	$("banner").hidden = false;
	$("banner-text").textContent = say(progress === null ? "unreachable" : "loading");
	$("loading").hidden = progress === null;
	$("loading").value = progress ?? 0;
}

welcome();
translate(null);
chat.open();
if (kiosk) {
	$("restart").onclick = forget;
	new Kiosk(
		{ busy: () => chat.running, isFresh: () => !chat.entries.length && composer.isEmpty && !language, forget },
		config,
	);
} else {
	await sidebar.show();
	pictures.sweep(await storage.all("conversations")).catch(() => {});
}
composer.field.focus();
document.body.classList.add("ready");
await untilLoaded(loads);
$("banner").hidden = true;
await withKey(() => status.refresh()).catch(() => {});
