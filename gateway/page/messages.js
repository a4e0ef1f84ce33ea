// The conversation as it is shown: one article per message.

import { statsText } from "./answer.js";
import { openToolCalls } from "./conversation.js";
import { button, copyText, element } from "./dom.js";
import { MarkdownView } from "./markdown.js";

const NAMES = { user: "You", assistant: "Answer", tool: "Tool" };

function prettyArguments(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // still growing, or no JSON
  }
}

function reasoningSummary(seconds, running) {
  if (running) return `Reasoning for ${Math.floor(seconds)} s`;
  return seconds == null || seconds < 0.1 ? "Reasoning" : `Reasoned for ${seconds.toFixed(1)} s`;
}

// The parts of an answer, kept up to date while it streams.
export class AnswerView {
  #reasoning = element("div");
  #summary = element("summary");
  #details = element(
    "details",
    { class: "reasoning", hidden: true },
    this.#summary,
    this.#reasoning,
  );
  #text = element("div", { class: "markdown" });
  #markdown = new MarkdownView(this.#text, copyText);
  #calls = element("div");
  #shownCalls = "[]";
  #waiting = element("p", { class: "waiting help", hidden: true }, "Waiting for the first token");
  body = element("div", { class: "body" }, this.#details, this.#text, this.#calls, this.#waiting);

  // `message` as a conversation keeps it.
  show(message, { reasoningNow = false, waiting = false } = {}) {
    this.#waiting.hidden = !waiting;
    this.#details.hidden = !message.reasoning;
    if (message.reasoning) {
      this.#setText(this.#summary, reasoningSummary(message.reasoningSeconds, reasoningNow));
      this.#setText(this.#reasoning, message.reasoning.trim());
    }
    this.#markdown.update(message.content.trim());
    const key = JSON.stringify(message.toolCalls ?? []);
    if (key === this.#shownCalls) return;
    this.#shownCalls = key;
    this.#calls.replaceChildren(
      ...(message.toolCalls ?? []).map((call) =>
        element(
          "div",
          { class: "call" },
          element("h3", {}, `Calls the tool ${call.name}`),
          element("pre", {}, element("code", {}, prettyArguments(call.arguments))),
        ),
      ),
    );
  }

  // What stays as it is keeps its selection.
  #setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }
}

function failureBox(failure, retry) {
  return element(
    "div",
    { class: "failure", role: "alert" },
    element("span", {}, failure.message),
    button("Retry", retry),
  );
}

function resultForm(calls, onResults) {
  const areas = calls.map((call, index) =>
    element("textarea", { id: `result-${index}`, rows: 2, spellcheck: "false" }),
  );
  const form = element("form", { class: "results" });
  calls.forEach((call, index) => {
    form.append(
      element("label", { for: `result-${index}` }, `Result of ${call.name}`),
      areas[index],
    );
  });
  const give = () =>
    onResults(
      calls.map((call, index) => ({
        role: "tool",
        toolCallId: call.id,
        name: call.name,
        content: areas[index].value,
      })),
    );
  form.append(
    element(
      "button",
      { type: "submit" },
      calls.length > 1 ? "Give the results" : "Give the result",
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    give();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    give();
  });
  return form;
}

// `actions`: {regenerate(index), edit(index), remove(index), retry(), giveResults(messages)}.
export function messageArticle(message, index, actions) {
  const article = element("article", { class: message.role, "aria-label": NAMES[message.role] });
  article.append(
    element("h2", {}, message.role === "tool" ? `Result of ${message.name}` : NAMES[message.role]),
  );
  if (message.role === "assistant") {
    const view = new AnswerView();
    view.show(message);
    article.append(view.body);
    if (message.failure) article.append(failureBox(message.failure, actions.retry));
    const line = message.stats ? statsText(message.stats) : "";
    if (line !== "") article.append(element("div", { class: "stats" }, line));
  } else {
    article.append(element("div", { class: "body" }, message.content));
  }
  const bar = element("div", { class: "actions" });
  if (message.content !== "") {
    const copy = button("Copy", () => copyText(message.content, copy));
    bar.append(copy);
  }
  if (message.role === "user") bar.append(button("Edit", () => actions.edit(index)));
  if (message.role === "assistant")
    bar.append(button("Regenerate", () => actions.regenerate(index)));
  bar.append(button("Delete from here", () => actions.remove(index)));
  article.append(bar);
  return article;
}

// A user's message being changed; `save(text)` and `cancel()` end it.
export function editArticle(message, save, cancel) {
  const area = element("textarea", {
    id: "edit",
    rows: Math.min(12, message.content.split("\n").length + 1),
  });
  area.value = message.content;
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      cancel();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      save(area.value);
    }
  });
  return element(
    "article",
    { class: "user edit" },
    element("label", { for: "edit" }, "Change your message; the answers after it are made anew"),
    area,
    element(
      "div",
      { class: "row" },
      element("button", { type: "button", onclick: () => save(area.value) }, "Send"),
      button("Cancel", cancel),
    ),
  );
}

export function emptyState(modelName, suggestions) {
  return element(
    "div",
    { class: "empty" },
    element("p", {}, modelName === "" ? "Nothing said yet." : `Nothing said yet to ${modelName}.`),
    element("div", { class: "row" }, ...suggestions.map(([text, use]) => button(text, use))),
  );
}

// The form for tool results after the last message; null when no call waits.
export function resultsFor(conversation, actions) {
  const calls = openToolCalls(conversation);
  return calls.length === 0 ? null : resultForm(calls, actions.giveResults);
}
