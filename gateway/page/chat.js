// The chat tab: what is said, to whom, and what the buttons do.

import { AnswerBuilder, wholeSentences } from "./answer.js";
import { ApiFailure, listModels, streamChat } from "./api.js";
import {
  EXAMPLE_TOOLS,
  Store,
  exportText,
  importText,
  messagesForApi,
  newConversation,
  openToolCalls,
  requestFields,
  titleOf,
} from "./conversation.js";
import { button, byId, download, element, keep, kept, say, storageOf } from "./dom.js";
import { AnswerView, editArticle, emptyState, messageArticle, resultsFor } from "./messages.js";
import { SettingsForm } from "./settings.js";

const CURRENT = "weir.current";

function newId() {
  // Ordered by time, and never the same twice: two may be made in one millisecond.
  const random = crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
  return `${String(Date.now()).padStart(15, "0")}-${random}`;
}

export class Chat {
  #store = new Store(storageOf("localStorage"));
  #chats = [];
  #current;
  #modelName = "";
  #running = null; // {abort, discard} while an answer comes
  #editing = null; // index of the user message that is being changed
  #undo = null;
  #settings;
  #log = byId("log");
  #scroll = byId("scroll");
  #prompt = byId("prompt");

  constructor() {
    this.#settings = new SettingsForm(() => this.#onSettings());
    this.#chats = this.#store.all();
    this.#current = this.#chats.find((chat) => chat.id === kept(CURRENT)) ?? this.#chats[0];
    if (this.#current === undefined) this.#add(newConversation(newId()));
    this.#listen();
    this.#open(this.#current);
  }

  set modelName(name) {
    this.#modelName = name;
    if (this.#current.messages.length === 0 && this.#running === null) this.#render();
  }

  #listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      // Enter that ends a composition (of Japanese, say) is not meant for us.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    this.#prompt.addEventListener("input", () => this.#fitPrompt());
    byId("stop").addEventListener("click", () => this.stop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#running !== null) this.stop();
    });
    byId("new-chat").addEventListener("click", () => this.#newChat());
    byId("export").addEventListener("click", () =>
      download("weir-chats.json", exportText(this.#chats)),
    );
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.#import(event.target));
    byId("example-tools").addEventListener("click", () =>
      this.#settings.set("tools", EXAMPLE_TOOLS),
    );
    byId("undo").addEventListener("click", () => {
      this.#hideNotice();
      this.#undo?.();
      this.#prompt.focus();
    });
  }

  stop() {
    this.#running?.abort.abort();
  }

  // ---- which conversation

  #add(conversation) {
    this.#chats.unshift(conversation);
    this.#current = conversation;
  }

  #open(conversation) {
    this.stop();
    this.#current = conversation;
    this.#editing = null;
    keep(CURRENT, conversation.id);
    this.#settings.show(conversation.settings);
    this.#render();
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
  }

  #newChat() {
    this.stop();
    if (this.#current.messages.length > 0)
      this.#add(newConversation(newId(), this.#current.settings));
    this.#open(this.#current);
    document.body.classList.remove("drawer-open");
    this.#prompt.focus();
    say("New chat");
  }

  #removeChat(conversation) {
    if (conversation === this.#current) this.#discard();
    const at = this.#chats.indexOf(conversation);
    this.#store.remove(conversation.id);
    this.#chats.splice(at, 1);
    if (this.#chats.length === 0) this.#add(newConversation(newId(), conversation.settings));
    if (conversation === this.#current || this.#chats.length === 1)
      this.#open(this.#chats[Math.min(at, this.#chats.length - 1)]);
    else this.#renderList();
    this.#offerUndo(`Deleted the chat "${titleOf(conversation)}".`, () => {
      this.#chats.splice(at, 0, conversation);
      this.#store.save(conversation);
      this.#open(conversation);
    });
  }

  async #import(input) {
    const file = input.files[0];
    input.value = ""; // the same file may be chosen again
    if (file === undefined) return;
    try {
      const imported = importText(await file.text(), newId);
      for (const conversation of imported) {
        this.#add(conversation);
        this.#save(conversation);
      }
      this.#open(this.#current);
      this.#notice(`Imported ${imported.length} ${imported.length === 1 ? "chat" : "chats"}.`);
    } catch (error) {
      this.#notice(`"${file.name}" was not imported: ${error.message}.`);
    }
  }

  #save(conversation = this.#current) {
    conversation.title = titleOf(conversation);
    if (conversation.messages.length === 0) {
      this.#store.remove(conversation.id);
    } else if (!this.#store.save(conversation)) {
      this.#notice(
        "The browser's storage is full or closed: this chat is gone with the page. Export it.",
      );
    }
  }

  #onSettings() {
    this.#current.settings = this.#settings.values();
    this.#save();
  }

  // ---- what is said

  #send() {
    const text = this.#prompt.value;
    if (text.trim() === "" || this.#running !== null) return;
    if (!this.#settings.check()) return;
    this.#current.messages.push({ role: "user", content: text });
    this.#prompt.value = "";
    this.#fitPrompt();
    this.#answer();
  }

  #actions = {
    regenerate: (index) => this.#again(index),
    retry: () => this.#again(this.#current.messages.length - 1),
    remove: (index) => this.#removeFrom(index),
    edit: (index) => {
      this.stop();
      this.#editing = index;
      this.#render();
      byId("edit").focus();
    },
    giveResults: (messages) => {
      if (this.#running !== null || !this.#settings.check()) return;
      this.#current.messages.push(...messages);
      this.#prompt.focus();
      this.#answer();
    },
  };

  #again(index) {
    if (this.#running !== null || !this.#settings.check()) return;
    this.#current.messages.splice(index);
    this.#prompt.focus();
    this.#answer();
  }

  #removeFrom(index) {
    this.#discard();
    const conversation = this.#current;
    const removed = conversation.messages.splice(index);
    this.#save();
    this.#render();
    this.#prompt.focus();
    this.#offerUndo(
      removed.length === 1 ? "Deleted one message." : `Deleted ${removed.length} messages.`,
      () => {
        conversation.messages.splice(index, Infinity, ...removed);
        this.#save(conversation);
        this.#open(conversation);
      },
    );
  }

  #endEdit(index, text) {
    this.#editing = null;
    if (text !== null && text.trim() !== "" && this.#settings.check()) {
      this.#current.messages.splice(index, Infinity, { role: "user", content: text });
      this.#answer();
    } else {
      this.#render();
    }
    this.#prompt.focus();
  }

  // Asks for the next message of the current conversation and shows it as it comes.
  async #answer() {
    const conversation = this.#current;
    const running = { abort: new AbortController(), discard: false };
    this.#running = running;
    this.#editing = null;
    this.#hideNotice();
    this.#save();
    this.#render();
    this.#setBusy(true);
    const builder = new AnswerBuilder(() => performance.now());
    const live = this.#liveArticle(builder);
    let failure = null;
    let stopped = false;
    try {
      // The server may not have been up, or not let us in, when the page began.
      if (this.#modelName === "") [this.#modelName] = await listModels(this.#settings.key);
      const body = {
        model: this.#modelName,
        messages: messagesForApi(conversation),
        ...requestFields(conversation.settings).fields,
        stream: true,
        stream_options: { include_usage: true },
      };
      await streamChat(body, {
        key: this.#settings.key,
        signal: running.abort.signal,
        onChunk: (chunk) => builder.apply(chunk) && live.changed(),
      });
    } catch (error) {
      if (error.name === "AbortError") stopped = true;
      else if (error instanceof ApiFailure) failure = error;
      else throw error;
    } finally {
      live.end();
      this.#running = null;
      this.#setBusy(false);
      if (!running.discard) this.#keep(conversation, builder.message(), failure, stopped);
    }
  }

  // Stops an answer whose place in the conversation goes away.
  #discard() {
    if (this.#running === null) return;
    this.#running.discard = true;
    this.stop();
  }

  #keep(conversation, message, failure, stopped) {
    if (stopped) message.stats.stopped = true;
    // A call that was cut off is none.
    if (stopped || failure !== null) delete message.toolCalls;
    if (failure !== null)
      message.failure = { message: failure.message, retryable: failure.retryable };
    if (failure !== null || !stopped || message.content !== "" || message.reasoning)
      conversation.messages.push(message);
    this.#save(conversation);
    if (conversation !== this.#current) return this.#renderList();
    this.#render();
    if (this.#editing !== null) return byId("edit").focus();
    if (failure?.needsKey) this.#settings.askForKey();
    const calls = openToolCalls(conversation);
    if (failure !== null) return; // the alert speaks for itself
    say(
      stopped
        ? "Stopped."
        : calls.length > 0
          ? `Calls ${calls.map((call) => call.name).join(", ")}.`
          : "Answer complete.",
    );
    if (calls.length > 0 && this.#prompt.value === "") byId("result-0").focus();
  }

  #setBusy(busy) {
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
    this.#scroll.setAttribute("aria-busy", String(busy));
    if (busy) say("Waiting for the answer.");
  }

  // The article of the answer that comes: drawn at most once a frame, spoken by whole sentences.
  #liveArticle(builder) {
    const view = new AnswerView();
    const article = element(
      "article",
      { class: "assistant live", "aria-label": "Answer" },
      element("h2", {}, "Answer"),
      view.body,
    );
    this.#log.append(article);
    const spoken = byId("spoken");
    spoken.replaceChildren();
    let said = 0;
    let frame = null;
    const draw = () => {
      frame = null;
      const atEnd =
        this.#scroll.scrollHeight - this.#scroll.scrollTop - this.#scroll.clientHeight < 80;
      const message = builder.message();
      view.show(message, {
        reasoningNow: builder.isReasoning,
        waiting: message.stats.firstSeconds === null,
      });
      if (atEnd) this.#scroll.scrollTop = this.#scroll.scrollHeight;
    };
    const speak = (ended) => {
      const [text, next] = wholeSentences(builder.content, said, ended);
      said = next;
      if (text.trim() !== "") spoken.append(element("p", {}, text));
    };
    draw();
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
    return {
      changed: () => {
        frame ??= requestAnimationFrame(draw);
        speak(false);
      },
      end: () => {
        if (frame !== null) cancelAnimationFrame(frame);
        speak(true);
        article.remove();
      },
    };
  }

  // ---- what is shown

  #render() {
    const { messages } = this.#current;
    const atEnd =
      this.#scroll.scrollHeight - this.#scroll.scrollTop - this.#scroll.clientHeight < 80;
    const openDetails = new Set(
      [...this.#log.children].flatMap((child, index) =>
        child.querySelector("details[open]") ? [index] : [],
      ),
    );
    if (messages.length === 0) {
      this.#log.replaceChildren(emptyState(this.#modelName, this.#suggestions()));
    } else {
      const articles = messages.map((message, index) =>
        index === this.#editing
          ? editArticle(
              message,
              (text) => this.#endEdit(index, text),
              () => this.#endEdit(index, null),
            )
          : messageArticle(message, index, this.#actions),
      );
      const results = this.#running === null ? resultsFor(this.#current, this.#actions) : null;
      this.#log.replaceChildren(...articles, ...(results === null ? [] : [results]));
      articles.forEach((article, index) => {
        if (openDetails.has(index)) article.querySelector("details")?.setAttribute("open", "");
      });
    }
    if (atEnd) this.#scroll.scrollTop = this.#scroll.scrollHeight;
    this.#renderList();
  }

  #suggestions() {
    const ask = (text) => () => {
      this.#prompt.value = text;
      this.#send();
    };
    const withTool = () => {
      this.#settings.set("tools", EXAMPLE_TOOLS);
      ask("What is the weather in Paris?")();
    };
    return [
      ["What is 27 + 48?", ask("What is 27 + 48?")],
      ["Tell me a tale about a fox.", ask("Tell me a tale about a fox.")],
      ["Call a tool: the weather in Paris", withTool],
    ];
  }

  #renderList() {
    byId("chats").replaceChildren(
      ...this.#chats.map((chat) => {
        const title = titleOf(chat);
        const open = button(
          title,
          () => {
            this.#open(chat);
            document.body.classList.remove("drawer-open");
            this.#prompt.focus();
          },
          { class: "quiet open", title, "aria-current": String(chat === this.#current) },
        );
        const remove = button("×", () => this.#removeChat(chat), {
          "aria-label": `Delete the chat ${title}`,
          title: "Delete",
        });
        return element("li", {}, open, ...(chat.messages.length > 0 ? [remove] : []));
      }),
    );
  }

  #notice(text) {
    this.#undo = null;
    byId("notice-text").textContent = text;
    byId("undo").hidden = true;
    byId("notice").hidden = false;
  }

  #offerUndo(text, undo) {
    this.#notice(text);
    this.#undo = undo;
    byId("undo").hidden = false;
  }

  #hideNotice() {
    byId("notice").hidden = true;
  }

  #fitPrompt() {
    this.#prompt.style.height = "auto";
    this.#prompt.style.height = `${this.#prompt.scrollHeight + 2}px`;
  }
}
