// Puts the page together: the server's configuration, the conversation, and everything around it.

import { getJson, health } from "./api.js";
import { Announcer } from "./announcer.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { $, button, fillIcons } from "./dom.js";
import { Kiosk } from "./kiosk.js";
import { Log } from "./log.js";
import { restrict } from "./markdown.js";
import { askKey, Settings } from "./settings.js";
import { Sidebar, toast } from "./sidebar.js";
import { Status } from "./status.js";
import { Storage, wipe } from "./storage.js";
import { untilLoaded } from "./turn.js";
import { englishNameOf, isRightToLeft, nameOf, say, speak } from "./words.js";

const config = await withKey(() => getJson("page-config.json")).catch(() => ({}));
const kiosk = config.kiosk === true || new URLSearchParams(location.search).get("kiosk") === "1";
document.documentElement.classList.toggle("kiosk", kiosk);
fillIcons(document);
if (config.title) $("title").textContent = document.title = config.title;

const storage = new Storage();
if (kiosk) {
  wipe();
  restrict();
} else await storage.open();

let language = null;
const announcer = new Announcer($("announcer"));
const settings = new Settings(storage);
if (!kiosk) await settings.load();
const status = new Status((value) => {
  settings.showDefaults(value.sampling);
  status.show(chat.entries);
});

const log = new Log({
  copy: (text) => navigator.clipboard?.writeText(text).then(() => toast("Copied."), () => toast("Copying was refused.")),
  edit: (index, text) => (chat.edit(index, text), composer.field.focus()),
  retry: (index) => (chat.retry(index), composer.field.focus()),
  again: () => (chat.again(), composer.field.focus()),
  results: (texts) => (chat.results(texts), composer.field.focus()),
  remove: (index) => {
    const before = chat.entries;
    chat.remove(index);
    composer.field.focus();
    toast("The question and its answer were deleted.", () => chat.restore(before));
  },
});

const chat = new Chat({
  log,
  announcer,
  askKey,
  settings: () => ({
    kiosk,
    system: [settings.value.system || config.system, language && `Answer in ${englishNameOf(language)}.`].filter(Boolean).join("\n"),
    model: null,
    sampling: settings.sampling,
    tools: settings.tools,
  }),
  save: (conversation) => {
    if (!kiosk) storage.put("conversations", conversation).then(() => sidebar.show());
  },
  changed,
});

const composer = new Composer(
  {
    send: (text, files) => chat.send(text, files),
    stop: () => chat.stop(),
    maxContext: () => status.value.max_context,
    announce: (text) => announcer.say(text),
  },
  { attaches: !kiosk, maxChars: config.max_prompt_chars ?? null, placeholder: config.placeholder },
);
const sidebar = new Sidebar({
  storage,
  toast,
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
  if (wasRunning && !chat.running) status.refresh();
  wasRunning = chat.running;
}

function translate(tag) {
  language = tag;
  speak(tag);
  $("restart").lastChild.textContent = say("restart");
  $("greeting").textContent = config.greeting ?? say("greeting");
  document.documentElement.lang = tag ?? config.languages?.[0] ?? "en";
  document.documentElement.dir = isRightToLeft(tag) ? "rtl" : "ltr";
  for (const choice of $("languages").children) choice.setAttribute("aria-pressed", String(choice.value === tag));
  composer.clear();
}

function welcome() {
  const suggestions = (config.suggestions ?? []).map((text) => button(text, () => chat.send(text), "suggestion"));
  suggestions.forEach((choice) => (choice.dir = "auto"));
  $("suggestions").replaceChildren(...suggestions);
  const choices = (kiosk ? (config.languages ?? []) : []).map((tag) => {
    const choice = button(nameOf(tag), () => translate(language === tag ? null : tag), "quiet");
    return Object.assign(choice, { value: tag, lang: tag });
  });
  $("languages").replaceChildren(...(choices.length > 1 ? choices : []));
}

function forget() {
  chat.open();
  translate(null);
  $("toasts").replaceChildren();
  log.log.replaceChildren();
  wipe();
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

async function waitForModel() {
  const state = await health().catch(() => null);
  if (state?.ok) return;
  const told = (progress) => {
    $("banner").hidden = false;
    $("banner-text").textContent = state ? say("loading") : say("unreachable");
    $("loading").hidden = progress === null;
    $("loading").value = progress ?? 0;
  };
  await untilLoaded({ loading: told }, new AbortController().signal).catch(() => {});
  $("banner").hidden = true;
}

welcome();
translate(null);
chat.open();
if (kiosk) {
  $("restart").addEventListener("click", forget);
  new Kiosk(
    { busy: () => chat.running, isFresh: () => !chat.entries.length && composer.isEmpty && !language, forget },
    config,
  );
} else await sidebar.show();
composer.field.focus();
document.body.classList.add("ready");
await waitForModel();
await withKey(() => status.refresh()).catch(() => {});
