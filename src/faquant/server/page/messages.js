/** Shows messages. Their text becomes text nodes, never markup. */

import { parse } from "./answer.js";
import { Frame, GrowingText } from "./text.js";

const RATE_EVERY = 400;
const number = new Intl.NumberFormat("en");

/** Creates an element with properties and children. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function message(role, name) {
  const body = make("div", { className: "body", dir: "auto" });
  const article = make("article", { className: role, ariaLabel: name }, make("p", { className: "role" }, name), body);
  return { article, body };
}

/** A message of the user. */
export function userMessage(content) {
  const { article, body } = message("user", "You");
  new GrowingText(body).append(content);
  return article;
}

/** An answer: its text, its calls and its speed. */
export class AnswerView {
  element;
  #answer;
  #text;
  #reasoning = document.createTextNode("");
  #waiting = [];
  #calls = [];
  #stats = make("p", { className: "stats soft" });
  #shown = 0;
  #frame;

  /** Calls `drawn` after changes of the page. */
  constructor(answer, name, drawn) {
    const { article, body } = message("assistant", name);
    this.element = article;
    this.element.ariaBusy = "true";
    this.element.append(this.#stats);
    this.#answer = answer;
    this.#text = new GrowingText(body);
    this.#frame = new Frame(() => {
      this.#draw();
      drawn();
    });
  }

  grow(text) {
    if (text) this.#waiting.push(text);
    this.#frame.soon();
  }

  /** note: why the answer ended, if that is unusual. */
  finish(note) {
    this.#frame.now();
    const answer = this.#answer;
    for (const [index, call] of answer.calls.entries()) this.#calls[index].finish(call);
    if (answer.isEmpty) this.element.querySelector(".body").append(make("p", { className: "soft" }, "An empty answer."));
    if (answer.calls.length > 0 && !answer.canCall) note = [note, "the call is not complete and will not be sent on"].filter(Boolean).join(", ");
    this.#stats.textContent = stats(answer, note);
    this.element.ariaBusy = "false";
  }

  /** Asks for the results of all calls. Calls `send` with their texts; it returns whether they were accepted. */
  askForResults(send) {
    const button = make("button", { type: "submit", className: "main" }, this.#calls.length > 1 ? "Send the results" : "Send the result");
    const form = make("form", { className: "results", autocomplete: "off" }, ...this.#calls.map((call) => call.element), button);
    const inputs = this.#calls.map((call) => call.askForResult());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const fields = [...inputs, button];
      for (const each of fields) each.disabled = true;
      if (await send(inputs.map((input) => input.value))) {
        button.remove();
        for (const each of inputs) each.replaceWith(make("pre", { className: "result" }, each.value));
      } else {
        for (const each of fields) each.disabled = false;
        inputs[0].focus();
      }
    });
    this.#stats.before(form);
    return inputs[0];
  }

  #draw() {
    if (this.#answer.reasoning && !this.#reasoning.isConnected) {
      const details = make("details", { className: "soft reasoning" }, make("summary", {}, "Reasoning"), make("pre", {}, this.#reasoning));
      this.element.querySelector(".body").before(details);
    }
    if (this.#reasoning.length < this.#answer.reasoning.length) this.#reasoning.data = this.#answer.reasoning;
    if (this.#waiting.length > 0) this.#text.append(this.#waiting.splice(0).join(""));
    for (const [index, call] of this.#answer.calls.entries()) {
      if (!this.#calls[index]) this.#stats.before((this.#calls[index] = new CallView()).element);
      this.#calls[index].draw(call);
    }
    const now = performance.now();
    if (now - this.#shown < RATE_EVERY) return;
    this.#shown = now;
    this.#stats.textContent = speed(this.#answer, true);
  }
}

/** A call of a tool: its name, its arguments, its result. */
class CallView {
  #name = make("code");
  #arguments = document.createTextNode("");
  #label = make("label", { hidden: true });
  element = make("section", { className: "call" }, make("p", {}, "Calls ", this.#name), make("pre", {}, this.#arguments), this.#label);

  draw({ name, arguments: text }) {
    if (this.#name.textContent !== name) this.#name.textContent = name;
    this.#arguments.appendData(text.slice(this.#arguments.length));
  }

  finish({ arguments: text }) {
    const value = parse(text);
    // Parsing would round numbers with this many digits.
    if (value !== undefined && !/\d{16}/.test(text)) this.#arguments.data = JSON.stringify(value, null, 2);
  }

  askForResult() {
    const input = make("textarea", { rows: 2, className: "code", spellcheck: false });
    this.#label.append(make("span", {}, `Result of ${this.#name.textContent}`), input);
    this.#label.hidden = false;
    return input;
  }
}

const tokens = (count) => `${number.format(count)} ${count === 1 ? "token" : "tokens"}`;

function speed(answer, running) {
  const { firstToken, rate } = answer;
  const about = running || !answer.usage ? "≈ " : "";
  return [
    rate === null ? "" : `${about}${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`,
    firstToken === null ? "" : `first token after ${firstToken.toFixed(2)} s`,
  ].filter(Boolean).join(" · ");
}

function stats(answer, note) {
  const parts = [speed(answer, false)];
  if (answer.usage) {
    const { prompt_tokens: prompt, completion_tokens: completion, prompt_tokens_details: details } = answer.usage;
    const cached = details?.cached_tokens ? ` (${number.format(details.cached_tokens)} cached)` : "";
    parts.push(`prompt ${tokens(prompt)}${cached}`, `answer ${tokens(completion)}`);
  }
  if (answer.finishReason === "length") parts.push("ended by the limit of tokens");
  return [...parts, note].filter(Boolean).join(" · ");
}
