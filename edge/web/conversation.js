// A conversation as entries: OpenAI's messages, with what only the page needs beside them (files, stats, how one ended).
// In: entries, JSON of a user. Out: messages for the server, JSON for a file.

const ADVICE = "Choose a JSON list of messages, as Export writes it.";

export function newConversation(entries = []) {
	const id = crypto.getRandomValues(new Uint32Array(3)).join("-");
	return { id, title: titleOf(entries), updated: Date.now(), entries };
}

// Documents and a question in the layout of the command line (edge/documents/document.py).
function promptWith(files, question) {
	if (!files?.length) return question;
	const texts = files.map((file) => `[File Name]\n${file.name}\n[File Content]\n${file.text}`);
	return `${texts.join("\n\n")}\n\n\n${files.length} files uploaded.\n${question.trim()}`;
}

// urlOf: the data URL of a picture, if there is one
export function wireMessages(entries, system, urlOf) {
	const messages = entries.map(({ role, content, files, pictures = [], tool_calls, tool_call_id }) => {
		const text = role === "user" ? promptWith(files, content) : content;
		const parts = pictures.map((picture) => ({ type: "image_url", image_url: { url: urlOf(picture) } }));
		if (parts.length) return { role, content: text ? [...parts, { type: "text", text }] : parts };
		if (role === "user") return { role, content: text };
		if (role === "tool") return { role, tool_call_id, content };
		return tool_calls?.length ? { role, content: content || null, tool_calls } : { role, content };
	});
	const own = entries[0]?.role === "system";
	return system && !own ? [{ role: "system", content: system }, ...messages] : messages;
}

export function titleOf(entries) {
	const first = entries.find((entry) => entry.role === "user");
	const letters = [...(first?.content || (first?.files ?? first?.pictures)?.[0]?.name || "").trim().replace(/\s+/g, " ")];
	return letters.length > 48 ? `${letters.slice(0, 47).join("")}…` : letters.join("");
}

// Entries without a question and everything that answered it.
export function withoutTurn(entries, index) {
	const next = entries.findIndex((entry, at) => at > index && entry.role === "user");
	return [...entries.slice(0, index), ...(next < 0 ? [] : entries.slice(next))];
}

// Calls at the end that have no result yet.
export function openCalls(entries) {
	const last = entries.findLastIndex((entry) => entry.role !== "tool");
	const given = entries.slice(last + 1).map((entry) => entry.tool_call_id);
	return (entries[last]?.tool_calls ?? []).filter((call) => !given.includes(call.id));
}

const isData = (url) => /^data:image\/[a-z+.-]+;base64,/.test(url);

// Entries of a file; pictures are still `urls`. Throws an Error in words.
export function imported(text) {
	let found = null;
	try {
		found = JSON.parse(text);
	} catch {
		// Told below.
	}
	const list = found?.messages ?? found;
	if (!Array.isArray(list) || !list.length) throw new Error(`This file holds no list of messages. ${ADVICE}`);
	return list.map((message, index) => {
		const { role, content, tool_calls, tool_call_id } = message ?? {};
		const parts = Array.isArray(content) ? content : [];
		const urls = parts.map((part) => part?.image_url?.url).filter((url) => url !== undefined);
		const text = Array.isArray(content) ? parts.map((part) => part?.text ?? "").join("") : (content ?? "");
		const known = ["system", "user", "assistant", "tool"].includes(role) && typeof text === "string" && urls.every(isData);
		if (!known || tool_calls?.some((call) => typeof call?.function?.arguments !== "string")) {
			throw new Error(`Message ${index + 1} is not one that this page knows. ${ADVICE}`);
		}
		return { role, content: text, ...(urls.length && { urls }), ...(tool_calls && { tool_calls }), ...(tool_call_id && { tool_call_id }) };
	});
}
