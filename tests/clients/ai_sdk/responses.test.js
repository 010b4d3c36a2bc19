// What the AI SDK asks of /v1/responses alone: conversations that the server keeps, and items by reference.

import assert from "node:assert/strict";
import { test } from "node:test";

import { APICallError, generateText, stepCountIs, streamText } from "ai";

import { ask, FORECAST, LIMIT, models, QUESTION, settings, TOKENS, weather } from "./weather.js";

const include = { requestBody: true, responseBody: true };
const options = { model: models["openai, responses"], maxOutputTokens: TOKENS, temperature: 0, maxRetries: 0, include };
const openai = (fields) => ({ providerOptions: { openai: fields } });
const again = { role: "user", content: "And of Italy?" };

const first = await generateText({ ...options, prompt: QUESTION });
const talk = [{ role: "user", content: QUESTION }, { role: "assistant", content: first.text }, again];
const raw = await ask({ messages: talk, max_tokens: TOKENS });

test("the default model of the provider speaks to /v1/responses", () => {
  assert.equal(first.response.body.object, "response");
});

test("a previous response is continued", async () => {
  const { responseId } = first.providerMetadata.openai;
  const second = await generateText({ ...options, messages: [again], ...openai({ previousResponseId: responseId }) });
  assert.equal(second.text, raw.choices[0].message.content);
  assert.equal(second.usage.inputTokens, raw.usage.prompt_tokens);
});

test("a conversation is sent with references to its items, or, if nothing is stored, with the items", async () => {
  for (const store of [true, false]) {
    const begun = await generateText({ ...options, prompt: QUESTION, ...openai({ store }) });
    const messages = [{ role: "user", content: QUESTION }, ...begun.response.messages, again];
    const second = await generateText({ ...options, messages, ...openai({ store }) });
    assert.equal(second.text, raw.choices[0].message.content);
    const sent = second.request.body.input.map((item) => item.type);
    assert.equal(sent.includes("item_reference"), store);
  }
});

test("an item that the server does not have is an error", async () => {
  const headers = { Authorization: `Bearer ${settings.apiKey}` };
  const gone = await generateText({ ...options, prompt: QUESTION });
  const { responseId } = gone.providerMetadata.openai;
  const deleted = await fetch(`${settings.baseURL}/responses/${responseId}`, { method: "DELETE", headers });
  assert.equal(deleted.status, 200);
  const messages = [{ role: "user", content: QUESTION }, ...gone.response.messages, again];
  await assert.rejects(generateText({ ...options, messages }), (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, 400);
    assert.equal(error.data.error.code, "item_not_found");
    return true;
  });
});

test("calls are in the stored input of the step after them", async () => {
  const answer = streamText({
    ...options,
    include: {},
    maxOutputTokens: LIMIT,
    prompt: FORECAST,
    tools: { weather },
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
    stopWhen: stepCountIs(2),
    ...openai({ parallelToolCalls: false }),
  });
  const [called, told] = await answer.steps;
  assert.equal(called.toolCalls.length, 1);
  const { responseId } = told.providerMetadata.openai;
  const headers = { Authorization: `Bearer ${settings.apiKey}` };
  const reply = await fetch(`${settings.baseURL}/responses/${responseId}/input_items?order=asc`, { headers });
  const { data } = await reply.json();
  assert.deepEqual(
    data.map((item) => item.type),
    ["message", "function_call", "function_call_output"],
  );
  assert.equal(data[1].call_id, called.toolCalls[0].toolCallId);
  assert.equal(data[2].call_id, data[1].call_id);
});
