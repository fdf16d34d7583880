// An answer that grows by the chunks of a stream. In: chunks of chat completions. Out: one message, and what was said
// about it: progress of the prompt, timings, usage, why it ended. Knows nothing about where chunks come from.

export class GrowingAnswer {
  content = "";
  calls = [];
  progress = null; // {total, processed, cache}: while the prompt is read
  timings = null;
  usage = null;
  reason = null; // stop, length, tool_calls, deadline
  dropped = 0; // messages that the server left out

  push(chunk) {
    this.progress = chunk.prompt_progress ?? (chunk.choices?.length ? null : this.progress);
    this.timings = chunk.timings ?? this.timings;
    this.usage = chunk.usage ?? this.usage;
    this.dropped = chunk.edge?.dropped_messages ?? this.dropped;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    this.content += choice.delta?.content ?? "";
    for (const part of choice.delta?.tool_calls ?? []) this.#call(part);
    if (choice.finish_reason) this.reason = choice.edge?.finish_reason ?? choice.finish_reason;
    this.dropped = choice.edge?.dropped_messages ?? this.dropped;
  }

  #call(part) {
    const call = (this.calls[part.index ?? 0] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    if (part.id) call.id = part.id;
    call.function.name += part.function?.name ?? "";
    call.function.arguments += part.function?.arguments ?? "";
  }

  get started() {
    return this.content !== "" || this.calls.length > 0;
  }

  entry() {
    const entry = { role: "assistant", content: this.content };
    if (this.calls.length) entry.tool_calls = this.calls.filter(Boolean);
    const stats = this.stats();
    if (stats) entry.stats = stats;
    if (this.reason && !["stop", "tool_calls"].includes(this.reason)) entry.ended = this.reason;
    if (this.dropped) entry.dropped = this.dropped;
    return entry;
  }

  // Figures for people: null where the server told none.
  stats() {
    if (!this.usage && !this.timings) return null;
    const read = this.usage?.prompt_tokens ?? (this.timings.prompt_n ?? 0) + (this.timings.cache_n ?? 0);
    const written = this.usage?.completion_tokens ?? this.timings?.predicted_n ?? 0;
    return {
      read,
      written,
      cached: this.usage?.prompt_tokens_details?.cached_tokens ?? this.timings?.cache_n ?? 0,
      perSecond: this.timings?.predicted_per_second ?? null,
      readMs: this.timings?.prompt_ms ?? null,
    };
  }
}
