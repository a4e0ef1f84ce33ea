// Server-sent events out of bytes, however the network cut them: inside a character, inside "\r\n",
// between the two newlines that end an event. After
// https://html.spec.whatwg.org/#parsing-an-event-stream.

export class SseParser {
  #decoder = new TextDecoder("utf-8"); // keeps half a character; drops the byte order mark
  #line = ""; // begun, not ended
  #afterCr = false; // the last character was "\r": a "\n" that follows belongs to it
  #data = []; // data lines of the event that is being read
  #type = "";

  // The events that `bytes` completed: [{type, data}].
  push(bytes) {
    return this.#take(this.#decoder.decode(bytes, { stream: true }));
  }

  #take(text) {
    const events = [];
    let from = 0;
    if (this.#afterCr && text.length > 0) {
      if (text[0] === "\n") from = 1;
      this.#afterCr = false;
    }
    for (let at = from; at < text.length; at++) {
      const character = text[at];
      if (character !== "\n" && character !== "\r") continue;
      this.#endLine(this.#line + text.slice(from, at), events);
      this.#line = "";
      if (character === "\r") {
        if (at + 1 === text.length) this.#afterCr = true;
        else if (text[at + 1] === "\n") at++;
      }
      from = at + 1;
    }
    this.#line += text.slice(from);
    return events;
  }

  #endLine(line, events) {
    if (line === "") {
      // An event without data is none.
      if (this.#data.length > 0)
        events.push({ type: this.#type || "message", data: this.#data.join("\n") });
      this.#data = [];
      this.#type = "";
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment keeps the connection alive
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#type = value;
  }
}
