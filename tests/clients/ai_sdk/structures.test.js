// Objects of a schema: by generateObject, and as the output of a text, alone and with tools.

import assert from "node:assert/strict";
import { test } from "node:test";

import { generateObject, generateText, Output, stepCountIs, streamObject, streamText } from "ai";
import { z } from "zod";

import { FORECAST, forecast, LIMIT, models, weather } from "./weather.js";

for (const [name, model] of Object.entries(models)) {
  const options = { model, prompt: FORECAST, maxOutputTokens: LIMIT, temperature: 0, maxRetries: 0 };

  test(`an object and its stream: ${name}`, async () => {
    const { object, finishReason } = await generateObject({ ...options, schema: forecast });
    assert.deepEqual(forecast.parse(object), object);
    assert.equal(finishReason, "stop");
    const stream = streamObject({ ...options, schema: forecast });
    const partial = [];
    for await (const piece of stream.partialObjectStream) partial.push(piece);
    assert.deepEqual(await stream.object, object);
    assert.deepEqual(partial.at(-1), object);
  });

  test(`the output of a text: ${name}`, async () => {
    const output = Output.object({ schema: forecast });
    const answer = await generateText({ ...options, output });
    assert.deepEqual(forecast.parse(answer.output), answer.output);
    const stream = streamText({ ...options, output });
    const partial = [];
    for await (const piece of stream.partialOutputStream) partial.push(piece);
    assert.deepEqual(partial.at(-1), answer.output);
  });

  test(`the output of an agent with tools: ${name}`, async () => {
    const answer = await generateText({
      ...options,
      tools: { weather },
      output: Output.object({ schema: forecast }),
      stopWhen: stepCountIs(3),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
    });
    assert.equal(answer.steps[0].toolCalls[0].toolName, "weather");
    assert.deepEqual(forecast.parse(answer.output), answer.output);
    // The model's own choice between a call and the object.
    const either = await generateText({ ...options, tools: { weather }, output: Output.object({ schema: forecast }) });
    if (either.toolCalls.length === 0) assert.deepEqual(forecast.parse(either.output), either.output);
    else assert.equal(either.toolCalls[0].toolName, "weather");
  });
}

test("a list, a choice", async () => {
  const model = models["openai-compatible"];
  const options = { model, prompt: FORECAST, maxOutputTokens: LIMIT, temperature: 0, maxRetries: 0 };
  const element = z.object({ hour: z.int().min(0).max(23) });
  const list = await generateObject({ ...options, output: "array", schema: element });
  for (const one of list.object) assert.deepEqual(element.parse(one), one);
  const choice = await generateObject({ ...options, output: "enum", enum: ["sunny", "rainy"] });
  assert.ok(["sunny", "rainy"].includes(choice.object));
});
