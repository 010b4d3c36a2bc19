/** One answer of the model, as it comes in. */

import { ask, events, Problem } from "./server.js";

export class Answer {
  text = "";
  /** {id, name, arguments}, the last one a text of JSON. */
  calls = [];
  finishReason = null;
  usage = null;
  /** Pieces that came, about one a token. */
  pieces = 0;
  #asked = performance.now();
  #first = null;
  #last = null;

  /** Takes in the whole answer to the body of a request. `grown` is called after each piece, with its text. */
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

  /** Whether all calls came as a whole, so that they can be answered. */
  get canCall() {
    return this.calls.length > 0 && this.finishReason !== null && this.calls.every((call) => parse(call.arguments) !== undefined);
  }

  /** Seconds to the first token; null: none came. */
  get firstToken() {
    return this.#first === null ? null : (this.#first - this.#asked) / 1000;
  }

  /** Tokens a second, without the first; null: there are too few. */
  get rate() {
    const tokens = (this.usage?.completion_tokens ?? this.pieces) - 1;
    return tokens > 0 && this.#last > this.#first ? (1000 * tokens) / (this.#last - this.#first) : null;
  }

  /** As it stands in the next request. A call that did not come as a whole is left out. */
  get message() {
    if (!this.canCall) return { role: "assistant", content: this.text };
    const calls = this.calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
    return { role: "assistant", content: this.text || null, tool_calls: calls };
  }

  #take({ delta = {}, finish_reason: reason }) {
    if (reason) this.finishReason = reason;
    if (!delta.content && !delta.tool_calls) return "";
    this.pieces += 1;
    this.#last = performance.now();
    this.#first ??= this.#last;
    for (const part of delta.tool_calls ?? []) {
      const call = (this.calls[part.index] ??= { id: "", name: "", arguments: "" });
      call.id ||= part.id ?? "";
      call.name += part.function?.name ?? "";
      call.arguments += part.function?.arguments ?? "";
    }
    this.text += delta.content ?? "";
    return delta.content ?? "";
  }
}

/** The value of a JSON text, or undefined. */
export function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
