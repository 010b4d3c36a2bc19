// What all tests ask, and how they reach the server: BASE_URL, API_KEY and MODEL are in the environment.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { tool } from "ai";
import { z } from "zod";

const { BASE_URL: baseURL, API_KEY: apiKey, MODEL } = process.env;
export const settings = { baseURL, apiKey, name: "faquant" };

const compatible = createOpenAICompatible({ ...settings, includeUsage: true, supportsStructuredOutputs: true });
const openai = createOpenAI(settings);

export const models = {
  "openai-compatible": compatible(MODEL),
  "openai, chat": openai.chat(MODEL),
  "openai, responses": openai(MODEL), // its default
};
export const completion = compatible.completionModel(MODEL);
export const embedding = compatible.textEmbeddingModel(MODEL);

export const QUESTION = "What is the capital of France?";
export const FORECAST = "What will the weather be in Paris?";
export const TOKENS = 24;
export const LIMIT = 120;

export const forecast = z.object({
  city: z.enum(["Paris", "London"]),
  degrees: z.int().min(-50).max(50),
  wind: z.object({ speed: z.int().min(0).max(200), direction: z.enum(["N", "E", "S", "W"]) }).nullable(),
  hours: z.array(z.int().min(0).max(23)).max(3),
});

export const asked = z.object({ city: z.enum(["Paris", "London"]), days: z.int().min(1).max(7) });

export const report = ({ city, days }) => `${city}: ${days} sunny days.`;

export const weather = tool({
  description: "The weather in a city, for some days.",
  inputSchema: asked,
  execute: async (input) => report(input),
});

// The server's answer without a client.
export async function ask(fields) {
  const reply = await fetch(`${baseURL}/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${apiKey}` },
    body: JSON.stringify({ messages: [{ role: "user", content: QUESTION }], temperature: 0, ...fields }),
  });
  return reply.json();
}
