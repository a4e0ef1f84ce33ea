// openai-node, unchanged but for its baseURL, against the server that WEIR_URL names (server.py
// starts one) and weir-tiny.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

const require = createRequire(process.env.WEIR_NODE_MODULES + '/');
const OpenAI = require('openai');
const { zodResponseFormat } = require('openai/helpers/zod');
const { z } = require('zod');

const url = process.env.WEIR_URL;
const model = 'weir-tiny';
const client = new OpenAI({ baseURL: url + '/v1', apiKey: 'unused', maxRetries: 0, timeout: 30_000 });
const chat = client.chat.completions;
const user = (content) => [{ role: 'user', content }];
const hello = { model, messages: user('Hello!'), temperature: 0 };
const weather = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'Get the current weather.',
    parameters: {
      type: 'object',
      properties: { city: { type: 'string', description: 'name of the city' } },
      required: ['city'],
    },
  },
};
const askWeather = {
  model,
  messages: user('What is the weather in Paris?'),
  tools: [weather],
  temperature: 0,
};

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const slotsUsed = async () =>
  Number((await (await fetch(url + '/metrics')).text()).match(/^weir_slots\{state="used"\} (\S+)$/m)[1]);

test('models', async () => {
  const ids = [];
  for await (const entry of client.models.list()) ids.push(entry.id);
  assert.deepEqual(ids, [model]);
});

test('chat', async () => {
  const answer = await chat.create(hello);
  assert.equal(answer.object, 'chat.completion');
  assert.equal(answer.choices[0].message.content, 'Hello! What can I do for you?');
  assert.equal(answer.choices[0].finish_reason, 'stop');
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test('a stream adds up to the answer and ends with its usage', async () => {
  const whole = await chat.create(hello);
  const chunks = await collect(
    await chat.create({ ...hello, stream: true, stream_options: { include_usage: true } }));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).usage, whole.usage);
  assert.equal(chunks.at(-2).choices[0].finish_reason, 'stop');
  const runner = chat.stream(hello);
  assert.equal(await runner.finalContent(), text);
});

test('completions', async () => {
  const answer = await client.completions.create(
    { model, prompt: 'Once upon a time', temperature: 0, max_tokens: 12, logprobs: 2 });
  assert.match(answer.choices[0].text, /^, there lived/);
  assert.equal(answer.choices[0].logprobs.tokens.join(''), answer.choices[0].text);
});

test('a tool is called and its result used', async () => {
  const answer = await chat.create(askWeather);
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(answer.choices[0].finish_reason, 'tool_calls');
  assert.equal(call.function.name, 'get_weather');
  assert.deepEqual(JSON.parse(call.function.arguments), { city: 'Paris' });
  const messages = [
    ...askWeather.messages,
    answer.choices[0].message,
    { role: 'tool', tool_call_id: call.id, content: '{"temperature": 12, "sky": "rainy"}' },
  ];
  const final = await chat.create({ ...askWeather, messages });
  assert.equal(final.choices[0].message.content, 'It is 12 degrees and rainy in Paris.');
});

test('the client runs the tool itself, streaming', async () => {
  const asked = [];
  const runner = chat.runTools({
    ...askWeather,
    stream: true,
    tools: [{
      type: 'function',
      function: {
        ...weather.function,
        parse: JSON.parse,
        function: (args) => {
          asked.push(args);
          return '{"temperature": 12, "sky": "rainy"}';
        },
      },
    }],
  });
  assert.equal(await runner.finalContent(), 'It is 12 degrees and rainy in Paris.');
  assert.deepEqual(asked, [{ city: 'Paris' }]);
});

test('a schema gives a typed object', async () => {
  const Person = z.object({ name: z.string(), age: z.number().int(), city: z.enum(['Paris', 'London']) });
  const answer = await chat.parse({
    model,
    messages: user('Fill in this JSON object from the text. Answer with JSON only.\n' +
      'Text: This is about Anna. Anna is 34 years old. Anna lives in Paris.\n' +
      'JSON: {"name": "", "age": 0, "city": ""}'),
    response_format: zodResponseFormat(Person, 'person'),
    temperature: 0,
  });
  assert.deepEqual(answer.choices[0].message.parsed, { name: 'Anna', age: 34, city: 'Paris' });
});

test('logprobs', async () => {
  const { choices: [choice] } = await chat.create({ ...hello, logprobs: true, top_logprobs: 2 });
  const bytes = choice.logprobs.content.flatMap((token) => token.bytes);
  assert.equal(Buffer.from(bytes).toString(), choice.message.content);
  assert.ok(choice.logprobs.content.every((token) => token.top_logprobs.length === 2));
});

test('three choices, the same for the same seed', async () => {
  const tales = async () => (await chat.create(
    { model, messages: user('Tell me a tale.'), n: 3, seed: 7, max_completion_tokens: 12 })).choices
    .map((choice) => choice.message.content);
  const first = await tales();
  assert.equal(new Set(first).size, 3);
  assert.deepEqual(await tales(), first);
});

test('stop', async () => {
  const answer = await chat.create({ ...hello, stop: ['What'] });
  assert.equal(answer.choices[0].message.content, 'Hello! ');
});

test("errors are the client's own classes", async () => {
  await assert.rejects(chat.create({ ...hello, temperature: -1 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.deepEqual([error.status, error.param, error.type], [400, 'temperature', 'invalid_request_error']);
    return true;
  });
  await assert.rejects(chat.create({ ...hello, model: 'gpt-4o' }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, 'model_not_found');
    return true;
  });
  await assert.rejects(client.embeddings.create({ model, input: 'x' }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.match(error.message, /embeddings/);
    return true;
  });
});

test('a stream that is given up frees its slot', async () => {
  const stream = await chat.create({ ...hello, max_tokens: 7000, ignore_eos: true, stream: true });
  let seen = 0;
  for await (const chunk of stream) {
    assert.ok(chunk.choices.length === 1);
    if (++seen === 4) break;
  }
  for (let i = 0; i < 100 && (await slotsUsed()) > 0; ++i) await sleep(20);
  assert.equal(await slotsUsed(), 0);
});
