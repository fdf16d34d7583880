// A conversation as entries: OpenAI's messages, with what only the page needs beside them (files, stats, how one ended).
// In: entries, JSON of a user. Out: messages for the server, JSON for a file. Knows no element and no server.

const ADVICE = "Choose a JSON list of messages, as Export writes it.";
const ROLES = ["system", "user", "assistant", "tool"];
export const NO_RESULT = "No result was given.";

export function newConversation() {
  return { id: crypto.getRandomValues(new Uint32Array(3)).join("-"), title: "", updated: Date.now(), entries: [] };
}

// Documents and a question in the layout that the command line uses (edge/documents/document.py).
export function promptWith(files, question) {
  if (!files?.length) return question;
  const texts = files.map((file) => `[File Name]\n${file.name}\n[File Content]\n${file.text}`);
  return `${texts.join("\n\n")}\n\n\n${files.length} files uploaded.\n${question.trim()}`;
}

export function wireMessages(entries, system) {
  const messages = entries.map((entry) => {
    if (entry.role === "user") return { role: "user", content: promptWith(entry.files, entry.content) };
    if (entry.role === "tool") return { role: "tool", tool_call_id: entry.tool_call_id, content: entry.content };
    if (!entry.tool_calls?.length) return { role: entry.role, content: entry.content };
    return { role: "assistant", content: entry.content || null, tool_calls: entry.tool_calls };
  });
  const own = entries[0]?.role === "system";
  return system && !own ? [{ role: "system", content: system }, ...messages] : messages;
}

export function titleOf(entries) {
  const first = entries.find((entry) => entry.role === "user");
  const text = (first?.content || first?.files?.[0]?.name || "").trim().replace(/\s+/g, " ");
  const letters = [...text];
  return letters.length > 48 ? `${letters.slice(0, 47).join("")}…` : text;
}

// Entries without a question and everything that answered it.
export function withoutTurn(entries, index) {
  const next = entries.findIndex((entry, at) => at > index && entry.role === "user");
  return [...entries.slice(0, index), ...(next < 0 ? [] : entries.slice(next))];
}

// Calls at the end that have no result yet.
export function openCalls(entries) {
  const last = entries.findLastIndex((entry) => entry.role === "assistant");
  const calls = last < 0 ? [] : (entries[last].tool_calls ?? []);
  const rest = entries.slice(last + 1);
  if (rest.some((entry) => entry.role === "user")) return [];
  return calls.filter((call) => !rest.some((entry) => entry.tool_call_id === call.id));
}

export function exported(entries, system) {
  return `${JSON.stringify(wireMessages(entries, system), null, 1)}\n`;
}

// Entries of a file. Throws an Error in words.
export function imported(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error(`This file is not JSON. ${ADVICE}`);
  }
  const list = Array.isArray(found) ? found : found?.messages;
  if (!Array.isArray(list) || !list.length) throw new Error(`This file holds no list of messages. ${ADVICE}`);
  return list.map((message, index) => {
    const where = `Message ${index + 1}`;
    if (!ROLES.includes(message?.role)) throw new Error(`${where} has no role that is known. ${ADVICE}`);
    const content = textOf(message.content);
    if (content === null) throw new Error(`${where} has a content that is not text. ${ADVICE}`);
    const entry = { role: message.role, content };
    if (message.role === "tool") entry.tool_call_id = String(message.tool_call_id ?? "");
    if (message.role === "assistant" && message.tool_calls?.length) entry.tool_calls = message.tool_calls.map(callOf);
    return entry;
  });
}

function textOf(content) {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  if (!Array.isArray(content) || content.some((part) => typeof part?.text !== "string")) return null;
  return content.map((part) => part.text).join("");
}

function callOf(call) {
  const { name, arguments: given } = call?.function ?? {};
  if (typeof name !== "string") throw new Error(`A tool call has no name. ${ADVICE}`);
  const text = typeof given === "string" ? given : JSON.stringify(given ?? {});
  return { id: String(call.id ?? ""), type: "function", function: { name, arguments: text } };
}
