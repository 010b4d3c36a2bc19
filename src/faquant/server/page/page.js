/** The conversation: sends messages, shows answers, and handles the user's input. */

import { Answer } from "./answer.js";
import { AnswerView, userMessage } from "./messages.js";
import { Problem, hasKey, setKey } from "./server.js";
import { FieldProblem, parameters, preamble, watchTools } from "./settings.js";
import { Status } from "./status.js";

const field = (id) => document.getElementById(id);
const [log, input, dialog] = ["log", "input", "key-dialog"].map(field);
const wide = matchMedia("(min-width: 64rem)");
const status = new Status(refused);
let messages = [];
let running = null; // an AbortController, while an answer is received
let unanswered = null; // the input for the result of a call
let follows = true;

/** Sends messages after the earlier ones and shows the answer. Returns whether they became part of the conversation. */
async function converse(added) {
  if (running) return false;
  say("");
  say("", "settings-problem");
  let wanted;
  try {
    wanted = parameters();
  } catch (problem) {
    if (!(problem instanceof FieldProblem)) throw problem;
    say(problem.message, "settings-problem");
    showSettings(true);
    problem.input.focus();
    return false;
  }
  const controller = begin();
  const sent = messages;
  const body = {
    ...(status.model === null ? {} : { model: status.model }),
    messages: [...preamble(), ...sent, ...added],
    stream: true,
    stream_options: { include_usage: true },
    ...wanted,
  };
  const answer = new Answer();
  const view = new AnswerView(answer, status.model ?? "Model", follow);
  log.append(view.element);
  follow();
  let problem = null;
  try {
    await answer.receive(body, controller.signal, (text) => view.grow(text));
  } catch (error) {
    problem = error;
  }
  if (sent !== messages) return true; // a new conversation has begun
  end();
  if (problem !== null && answer.isEmpty) {
    view.element.remove();
    if (problem.name !== "AbortError") fail(problem);
    return false;
  }
  messages = [...sent, ...added, answer.message];
  view.finish(problem && (problem.name === "AbortError" ? "stopped" : "broken off"));
  unanswered = answer.canCall ? view.askForResults((texts) => converse(results(answer.calls, texts))) : null;
  if (input.value === "") unanswered?.focus({ preventScroll: true });
  follow();
  if (problem !== null && problem.name !== "AbortError") fail(problem);
  field("announcement").textContent = unanswered ? "The model calls a tool." : "The answer has ended.";
  return true;
}

const results = (calls, texts) => calls.map(({ id }, index) => ({ role: "tool", tool_call_id: id, content: texts[index] }));

function begin() {
  running = new AbortController();
  status.busy = true;
  follows = true;
  field("empty").hidden = true;
  field("announcement").textContent = "";
  showRunning();
  return running;
}

function end() {
  running = null;
  status.busy = false;
  showRunning();
}

function showRunning() {
  const hadFocus = document.activeElement === field("stop");
  field("stop").hidden = running === null;
  field("send").hidden = running !== null;
  if (hadFocus) input.focus();
}

async function sendInput() {
  const content = input.value;
  if (running || content.trim() === "") return;
  if (unanswered) {
    say("First enter the result of the call above; it may be empty.");
    unanswered.focus();
    return;
  }
  const shown = userMessage(content);
  log.append(shown);
  input.value = "";
  if (await converse([{ role: "user", content }])) return;
  shown.remove();
  field("empty").hidden = messages.length > 0;
  input.value = [content, input.value].filter(Boolean).join("\n");
}

function beginAnew() {
  running?.abort();
  messages = [];
  unanswered = null;
  end();
  say("");
  for (const article of log.querySelectorAll("article")) article.remove();
  field("empty").hidden = false;
  input.focus();
}

function follow() {
  if (follows) log.scrollTop = log.scrollHeight;
}

function say(text, where = "notice") {
  field(where).textContent = text;
  field(where).hidden = text === "";
}

function fail(problem) {
  if (!(problem instanceof Problem)) console.error(problem);
  say(problem.message);
  if (problem.status === 401) askForKey(hasKey());
  else status.renew();
}

/** Handles a refused status request. */
function refused(problem) {
  if (problem.status === 401) askForKey(hasKey());
}

function askForKey(wasRefused) {
  if (dialog.open) return;
  say(wasRefused ? "The server does not accept the key." : "", "key-problem");
  field("key").value = "";
  dialog.showModal();
}

function showSettings(open) {
  document.body.classList.toggle("with-settings", open);
  field("settings-toggle").ariaExpanded = String(open);
  const covers = open && !wide.matches;
  const covered = document.querySelector("main").inert;
  document.querySelector("main").inert = covers;
  document.querySelector("header").inert = covers;
  if (covers) field("system").focus();
  else if (covered && !wide.matches) field("settings-toggle").focus();
}

field("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  sendInput();
});
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  sendInput();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || dialog.open) return;
  if (running) running.abort();
  else if (!wide.matches && document.body.classList.contains("with-settings")) showSettings(false);
});
log.addEventListener("scroll", () => {
  follows = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
});
field("stop").addEventListener("click", () => running?.abort());
field("new").addEventListener("click", beginAnew);
field("settings-toggle").addEventListener("click", () => showSettings(true));
field("settings-close").addEventListener("click", () => showSettings(false));
field("parameters").addEventListener("submit", (event) => event.preventDefault());
field("key-change").addEventListener("click", () => askForKey(false));
field("key-cancel").addEventListener("click", () => dialog.close());
field("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(field("key").value);
  field("key-change").hidden = false;
  dialog.close();
  say("");
  status.renew();
  input.focus();
});
new ResizeObserver(follow).observe(log); // a phone's keyboard changes the size
wide.addEventListener("change", () => showSettings(false));
field("key-change").hidden = !hasKey();
watchTools();
status.refresh();
input.focus();
