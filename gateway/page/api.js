// The server's HTTP door, as this page uses it.

import { SseParser } from "./sse.js";

// What went wrong, in words for the user. `retryable`: the same request may work later.
export class ApiFailure extends Error {
  constructor(message, { status = 0, retryable = false, needsKey = false } = {}) {
    super(message);
    Object.assign(this, { status, retryable, needsKey });
  }
}

const sentence = (text) => (text === "" || /[.!?]$/.test(text) ? text : `${text}.`);

// A refusal of the server: its own sentence, after what the status means.
export function failureFrom(status, body, retryAfter) {
  let detail = "";
  try {
    const error = JSON.parse(body).error;
    detail = sentence(String(error.message ?? ""));
    const param = String(error.param ?? "");
    if (param !== "" && !detail.includes(param)) detail += ` (field: ${param})`;
  } catch {
    detail = body.length < 300 ? sentence(body.trim()) : "";
  }
  const wait = /^\d{1,5}$/.test(retryAfter ?? "") ? ` Try again in ${retryAfter} s.` : "";
  const options = { status, retryable: true };
  if (status === 401 || status === 403) {
    const words = "The server asks for an API key that it knows. Enter one under Settings.";
    return new ApiFailure(`${words} ${detail}`.trim(), { status, retryable: true, needsKey: true });
  }
  if (status === 413)
    return new ApiFailure(`The conversation is too large for the server. ${detail}`.trim(), {
      status,
    });
  if (status === 429)
    return new ApiFailure(`The server has too much to do. ${detail}${wait}`.trim(), options);
  if (status === 503)
    return new ApiFailure(`The server takes no requests now. ${detail}${wait}`.trim(), options);
  if (status === 408 || status === 504)
    return new ApiFailure(`It took too long. ${detail}`.trim(), options);
  if (status >= 500)
    return new ApiFailure(`The server failed (${status}). ${detail}${wait}`.trim(), options);
  return new ApiFailure(`The server refuses this request. ${detail || `Status ${status}.`}`, {
    status,
  });
}

const headersWith = (key) => (key === "" ? {} : { Authorization: `Bearer ${key}` });

async function request(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiFailure("The server cannot be reached. Is it running?", { retryable: true });
  }
}

// The ids of the models that are served.
export async function listModels(key) {
  const response = await request("/v1/models", { headers: headersWith(key) });
  const body = await response.text();
  if (!response.ok) throw failureFrom(response.status, body, response.headers.get("retry-after"));
  return JSON.parse(body).data.map((model) => model.id);
}

export async function readMetrics(key, signal) {
  const response = await request("/metrics", {
    headers: headersWith(key),
    signal,
    cache: "no-store",
  });
  const body = await response.text();
  if (!response.ok) throw failureFrom(response.status, body, response.headers.get("retry-after"));
  return body;
}

// Runs one streamed completion: `onChunk` gets each parsed chunk. Ends after [DONE]. Throws
// ApiFailure, or AbortError when `signal` says stop; what onChunk throws goes through.
export async function streamChat(body, { key, signal, onChunk }) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headersWith(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) {
    throw failureFrom(response.status, await response.text(), response.headers.get("retry-after"));
  }
  const parser = new SseParser();
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new ApiFailure("The connection was lost in the middle of the answer.", {
          retryable: true,
        });
      });
      if (done)
        throw new ApiFailure("The server ended the answer in its middle.", { retryable: true });
      for (const event of parser.push(value)) {
        if (event.data === "[DONE]") return;
        onChunk(parseChunk(event.data));
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // after an error of ours the server need not go on
  }
}

function parseChunk(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ApiFailure("The server sent something that is no JSON.", { retryable: true });
  }
  if (chunk.error) {
    throw new ApiFailure(
      `The answer broke off. ${sentence(String(chunk.error.message ?? ""))}`.trim(),
      { retryable: true },
    );
  }
  return chunk;
}
