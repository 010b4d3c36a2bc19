// Text, its stream, and errors.

import assert from "node:assert/strict";
import { test } from "node:test";

import { APICallError, embed, generateText, streamText } from "ai";

import { ask, completion, embedding, models, QUESTION, TOKENS } from "./weather.js";

for (const [name, model] of Object.entries(models)) {
  const options = { model, prompt: QUESTION, maxOutputTokens: TOKENS, temperature: 0, maxRetries: 0 };

  test(`a text and its stream: ${name}`, async () => {
    const raw = await ask({ max_tokens: TOKENS });
    const answer = await generateText(options);
    assert.equal(answer.text, raw.choices[0].message.content);
    assert.equal(answer.finishReason, raw.choices[0].finish_reason);
    assert.equal(answer.usage.inputTokens, raw.usage.prompt_tokens);
    assert.equal(answer.usage.outputTokens, raw.usage.completion_tokens);

    const stream = streamText(options);
    const pieces = [];
    for await (const piece of stream.textStream) pieces.push(piece);
    assert.ok(pieces.length > 2);
    assert.equal(pieces.join(""), answer.text);
    assert.equal(await stream.finishReason, answer.finishReason);
    assert.deepEqual((await stream.usage).outputTokens, answer.usage.outputTokens);
  });

  test(`errors: ${name}`, async () => {
    await assert.rejects(generateText({ ...options, prompt: "word ".repeat(9000) }), (error) => {
      assert.ok(APICallError.isInstance(error));
      assert.equal(error.statusCode, 400);
      assert.equal(JSON.parse(error.responseBody).error.code, "context_length_exceeded");
      return true;
    });
    await assert.rejects(generateText({ ...options, temperature: 3 }), (error) => {
      assert.match(error.message, /temperature/);
      assert.equal(error.isRetryable, false);
      return true;
    });
  });
}

test("a completion", async () => {
  const prompt = "The capital of France is";
  const answer = await generateText({ model: completion, prompt, maxOutputTokens: 40, temperature: 0 });
  assert.ok(answer.text);
});

test("embeddings are refused", async () => {
  await assert.rejects(embed({ model: embedding, value: "Paris", maxRetries: 0 }), (error) => {
    assert.equal(error.statusCode, 404);
    assert.match(error.message, /embeddings/);
    return true;
  });
});
