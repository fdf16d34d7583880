// An answer that grows. In: chunks of chat completions. Out: a message, and what was told beside it.

export class GrowingAnswer {
	content = "";
	reasoning = "";
	calls = [];
	progress = null; // while the prompt is read
	picture = null; // while a picture is looked at
	timings = null;
	usage = null;
	reason = null; // stop, length, tool_calls, deadline
	dropped = 0; // messages that the server left out

	push(chunk) {
		this.progress = chunk.prompt_progress ?? (chunk.choices?.length ? null : this.progress);
		this.picture = chunk.picture_progress ?? (chunk.choices?.length || chunk.prompt_progress ? null : this.picture);
		this.timings = chunk.timings ?? this.timings;
		this.usage = chunk.usage ?? this.usage;
		const choice = chunk.choices?.[0] ?? {};
		this.dropped = (chunk.edge ?? choice.edge)?.dropped_messages ?? this.dropped;
		this.content += choice.delta?.content ?? "";
		this.reasoning += choice.delta?.reasoning_content ?? "";
		for (const part of choice.delta?.tool_calls ?? []) this.#call(part);
		if (choice.finish_reason) this.reason = choice.edge?.finish_reason ?? choice.finish_reason;
	}

	#call(part) {
		const call = (this.calls[part.index ?? 0] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
		if (part.id) call.id = part.id;
		call.function.name += part.function?.name ?? "";
		call.function.arguments += part.function?.arguments ?? "";
	}

	get started() {
		return this.content !== "" || this.reasoning !== "" || this.calls.length > 0;
	}

	entry() {
		const { content, reasoning, usage, timings, dropped, reason } = this;
		const entry = { role: "assistant", content, dropped, ...(reasoning && { reasoning }) };
		if (this.calls.length) entry.tool_calls = this.calls.filter(Boolean);
		if (!["stop", "tool_calls"].includes(reason)) entry.ended = reason;
		if (usage || timings) {
			entry.stats = {
				...timings, // none from a server that is told to be reproducible
				read: usage?.prompt_tokens ?? timings.prompt_n + timings.cache_n,
				written: usage?.completion_tokens ?? timings.predicted_n,
			};
		}
		return entry;
	}
}
