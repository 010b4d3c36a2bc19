/** The settings as fields of a request. */

import { parse } from "./answer.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const CHOICES = ["auto", "none", "required"];
const field = (id) => document.getElementById(id);

/** An invalid field. */
export class FieldProblem extends Error {
  constructor(input, message) {
    super(`${input.labels[0].textContent}: ${message}`);
    this.input = input;
  }
}

/** The fields of a request, without empty ones. Throws a FieldProblem. */
export function parameters() {
  const wanted = {};
  for (const id of NUMBERS) {
    const input = field(id);
    if (!input.checkValidity()) throw new FieldProblem(input, input.validationMessage);
    if (input.value !== "") wanted[id] = input.valueAsNumber;
  }
  const tools = readTools();
  return tools === null ? wanted : { ...wanted, tools, tool_choice: toolChoice() };
}

/** The messages before the conversation. */
export function preamble() {
  const content = field("system").value;
  return content.trim() === "" ? [] : [{ role: "system", content }];
}

/** Updates the tool choices to the tools that exist. */
export function watchTools() {
  field("tools").addEventListener("input", offerTools);
  offerTools();
}

function offerTools() {
  const tools = parse(field("tools").value);
  const names = (Array.isArray(tools) ? tools : []).map((tool) => tool?.function?.name).filter((name) => typeof name === "string");
  const select = field("tool_choice");
  const chosen = select.value;
  const options = [...CHOICES.map((name) => new Option(name, name)), ...names.map((name) => new Option(`only ${name}`, `:${name}`))];
  select.replaceChildren(...options);
  select.value = options.some((option) => option.value === chosen) ? chosen : CHOICES[0];
}

function toolChoice() {
  const { value } = field("tool_choice");
  return value.startsWith(":") ? { type: "function", function: { name: value.slice(1) } } : value;
}

function readTools() {
  const input = field("tools");
  if (input.value.trim() === "") return null;
  let tools;
  try {
    tools = JSON.parse(input.value);
  } catch (error) {
    throw new FieldProblem(input, `no JSON (${error.message}).`);
  }
  if (!Array.isArray(tools)) throw new FieldProblem(input, "a JSON array is wanted, [{…}].");
  return tools.length > 0 ? tools : null;
}
