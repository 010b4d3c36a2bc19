// Calls, their results, and a text: the agent loop, plain and streamed.

import assert from "node:assert/strict";
import { test } from "node:test";

import { generateText, stepCountIs, streamText, ToolLoopAgent } from "ai";

import { ask, asked, FORECAST, LIMIT, models, report, weather } from "./weather.js";

const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" });

const question = (await ask({ messages: [{ role: "user", content: FORECAST }], max_tokens: 1 })).usage.prompt_tokens;

function check(steps) {
  assert.equal(steps.length, 2);
  const [first, second] = steps;
  assert.equal(first.finishReason, "tool-calls");
  assert.ok(first.toolCalls.length);
  for (const call of first.toolCalls) assert.deepEqual(asked.parse(call.input), call.input);
  assert.deepEqual(
    first.toolResults.map((result) => [result.toolCallId, result.output]),
    first.toolCalls.map((call) => [call.toolCallId, report(call.input)]),
  );
  assert.equal(second.toolCalls.length, 0);
  assert.ok(second.text);
  // The prompt has the calls and their results.
  assert.ok(second.usage.inputTokens > question + first.usage.outputTokens);
  return first.toolCalls.map((call) => call.input);
}

for (const [name, model] of Object.entries(models)) {
  const options = {
    model,
    tools: { weather },
    prepareStep,
    stopWhen: stepCountIs(3),
    maxOutputTokens: LIMIT,
    temperature: 0,
    maxRetries: 0,
  };

  test(`an agent loop: ${name}`, async () => {
    const inputs = check((await generateText({ ...options, prompt: FORECAST })).steps);
    const stream = streamText({ ...options, prompt: FORECAST });
    let text = "";
    for await (const piece of stream.textStream) text += piece;
    const steps = await stream.steps;
    assert.deepEqual(check(steps), inputs);
    assert.equal(steps.map((step) => step.text).join(""), text);
  });

  test(`an agent, and a second question: ${name}`, async () => {
    const agent = new ToolLoopAgent({ ...options, instructions: "Use the tools." });
    const first = await agent.generate({ prompt: FORECAST });
    check(first.steps);
    const messages = [
      { role: "user", content: FORECAST },
      ...first.response.messages,
      { role: "user", content: "And tomorrow?" },
    ];
    const second = await agent.generate({ messages });
    check(second.steps);
  });

  test(`a named tool: ${name}`, async () => {
    const toolChoice = { type: "tool", toolName: "weather" };
    const answer = await generateText({
      ...options,
      prompt: FORECAST,
      prepareStep: undefined,
      toolChoice,
      stopWhen: stepCountIs(1),
    });
    assert.equal(answer.toolCalls.length, 1);
    assert.equal(answer.toolCalls[0].toolName, "weather");
  });
}
