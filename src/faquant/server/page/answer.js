/** One answer of the model, while it is received. */

import { ask, events, Problem } from "./server.js";

export class Answer {
  text = "";
  /** The reasoning before the text. */
  reasoning = "";
  /** {id, name, arguments}; the arguments are JSON text. */
  calls = [];
  finishReason = null;
  usage = null;
  /** Number of pieces received, about one per token. */
  pieces = 0;
  #asked = performance.now();
  #first = null;
  #last = null;

  /** Receives the answer to a request. Calls `grown` after each piece, with its text. */
  async receive(body, signal, grown) {
    const response = await ask("v1/chat/completions", { body, signal });
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Problem(chunk.error.message);
      if (chunk.usage) this.usage = chunk.usage;
      const choice = chunk.choices?.[0];
      if (choice) grown(this.#take(choice));
    }
  }

  get isEmpty() {
    return this.text === "" && this.calls.length === 0;
  }

  /** Whether all calls are complete, so that they can be answered. */
  get canCall() {
    return this.calls.length > 0 && this.finishReason !== null && this.calls.every((call) => parse(call.arguments) !== undefined);
  }

  /** Seconds to the first token; null if there was none. */
  get firstToken() {
    return this.#first === null ? null : (this.#first - this.#asked) / 1000;
  }

  /** Tokens per second, without the first token; null if there are too few. */
  get rate() {
    const tokens = (this.usage?.completion_tokens ?? this.pieces) - 1;
    return tokens > 0 && this.#last > this.#first ? (1000 * tokens) / (this.#last - this.#first) : null;
  }

  /** The message for the next request, without incomplete calls. */
  get message() {
    if (!this.canCall) return { role: "assistant", content: this.text };
    const calls = this.calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
    return { role: "assistant", content: this.text || null, tool_calls: calls };
  }

  #take({ delta = {}, finish_reason: reason }) {
    if (reason) this.finishReason = reason;
    if (!delta.content && !delta.reasoning_content && !delta.tool_calls) return "";
    this.pieces += 1;
    this.#last = performance.now();
    this.#first ??= this.#last;
    for (const part of delta.tool_calls ?? []) {
      const call = (this.calls[part.index] ??= { id: "", name: "", arguments: "" });
      call.id ||= part.id ?? "";
      call.name += part.function?.name ?? "";
      call.arguments += part.function?.arguments ?? "";
    }
    this.reasoning += delta.reasoning_content ?? "";
    this.text += delta.content ?? "";
    return delta.content ?? "";
  }
}

/** Parses JSON; returns undefined if it is invalid. */
export function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
