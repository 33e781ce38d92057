// What the tests ask through OpenAI's client for Node: node client.mjs BASE_URL MODEL
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "How many legs does a bird have?" }];
const ask = { model, messages, max_tokens: 24, seed: 1 };

const whole = await client.chat.completions.create(ask);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
const schema = {
  type: "object",
  properties: { name: { type: "string" }, legs: { type: "integer" } },
  required: ["name", "legs"],
  additionalProperties: false,
};
const shaped = await client.chat.completions.create({
  model,
  messages,
  seed: 1,
  response_format: { type: "json_schema", json_schema: { name: "bird", schema, strict: true } },
});
const called = await client.chat.completions
  .stream({
    model,
    messages,
    seed: 1,
    tools: [
      {
        type: "function",
        function: {
          name: "look_up",
          parameters: { type: "object", properties: { word: { type: "string" } }, required: ["word"] },
        },
      },
    ],
    tool_choice: "required",
    parallel_tool_calls: false,
  })
  .finalChatCompletion();
const response = await client.responses.create({
  model,
  input: "How many legs does a bird have?",
  max_output_tokens: 24,
});
const models = [];
for await (const one of client.models.list()) models.push(one.id);
console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    parsed: JSON.parse(shaped.choices[0].message.content),
    tool: called.choices[0].message.tool_calls[0].function.name,
    response: response.output_text,
    models,
  }),
);
