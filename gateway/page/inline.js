// What stands inside a paragraph: `code`, **strong**, *em*, ~~del~~, links, line ends.
// parseInline(text) -> [string | {kind: "strong" | "em" | "del" | "a", inline, href?} |
//                       {kind: "code", text} | {kind: "br"}]
// Time is linear in the text but for unclosed marks, of which each kind is looked up once.

const PUNCTUATION = /[\p{P}\p{S}]/u;
const ESCAPABLE = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
const MAX_OPEN = 64; // brackets and emphasis marks that may wait for their other end

// The address as the browser understands it, if it is http or https; else null.
export function safeHref(text) {
  let url;
  try {
    url = new URL(text); // no base: what is relative is refused
  } catch {
    return null;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return null;
  if (url.username !== "" || url.password !== "") return null; // it may seem to name another host
  return url.href;
}

// Every repetition has a bound, so that a link that never ends costs little.
const TARGET = [
  /\(\s{0,50}/,
  /(?:<([^<>\n]{0,2000})>|((?:[^\s()<>]|\([^\s()<>]{0,500}\)){0,2000}))/,
  /(?:\s{1,50}(?:"[^"\n]{0,300}"|'[^'\n]{0,300}'))?/,
  /\s{0,50}\)/,
]
  .map((part) => part.source)
  .join("");

// Reads `(address "title")` at `at`: {address, end} or null. The title is dropped.
function readTarget(text, at) {
  const match = new RegExp(TARGET, "y");
  match.lastIndex = at;
  const found = match.exec(text);
  return found === null ? null : { address: found[1] ?? found[2], end: match.lastIndex };
}

// Pushes onto a list of nodes, joining strings.
function add(nodes, node) {
  if (node === "") return;
  if (typeof node === "string" && typeof nodes.at(-1) === "string") nodes[nodes.length - 1] += node;
  else nodes.push(node);
}

class Reader {
  #text;
  #at = 0;
  #out = []; // strings, nodes, and delimiters {mark, count, opens, closes}
  #brackets = []; // indices into #out of "[" that may begin a link
  #noCode = new Set(); // lengths of backtick runs that have no second one

  constructor(text) {
    this.#text = text;
  }

  read() {
    const text = this.#text;
    const plain = /(?:[^\\`*_~[\]!<\nh]|h(?!ttps?:\/\/))+/y;
    while (this.#at < text.length) {
      plain.lastIndex = this.#at;
      const run = plain.exec(text);
      if (run !== null) {
        this.#out.push(run[0]);
        this.#at = plain.lastIndex;
        continue;
      }
      this.#special(text[this.#at]);
    }
    return resolve(this.#out);
  }

  #literal(length) {
    this.#out.push(this.#text.slice(this.#at, this.#at + length));
    this.#at += length;
  }

  #special(character) {
    const text = this.#text;
    if (character === "\\") return this.#escape();
    if (character === "`") return this.#code();
    if (character === "*" || character === "_" || character === "~")
      return this.#delimiter(character);
    if (character === "[") {
      if (this.#brackets.length < MAX_OPEN) this.#brackets.push(this.#out.length);
      return this.#literal(1);
    }
    if (character === "!" && text[this.#at + 1] === "[") {
      // An image would be fetched from elsewhere; it is shown as a link to it.
      this.#at++;
      if (this.#brackets.length < MAX_OPEN) this.#brackets.push(this.#out.length);
      return this.#literal(1);
    }
    if (character === "]") return this.#closeBracket();
    if (character === "<") return this.#autolink(/<(https?:\/\/[^\s<>]{1,2000})>/y);
    if (character === "h" && !/[\p{L}\p{N}_]/u.test(text[this.#at - 1] ?? "")) {
      return this.#autolink(/(https?:\/\/[^\s<>"'`\]]{1,2000})/y);
    }
    if (character === "\n") return this.#lineEnd();
    return this.#literal(1);
  }

  #escape() {
    const next = this.#text[this.#at + 1];
    if (next === "\n") {
      this.#out.push({ kind: "br" });
      this.#at += 2;
    } else if (next !== undefined && ESCAPABLE.includes(next)) {
      this.#out.push(next);
      this.#at += 2;
    } else {
      this.#literal(1);
    }
  }

  #code() {
    const run = /`+/y;
    run.lastIndex = this.#at;
    const length = run.exec(this.#text)[0].length;
    if (!this.#noCode.has(length)) {
      const runs = /`+/g;
      runs.lastIndex = this.#at + length;
      for (let match = runs.exec(this.#text); match !== null; match = runs.exec(this.#text)) {
        if (match[0].length !== length) continue;
        let code = this.#text.slice(this.#at + length, match.index).replaceAll("\n", " ");
        if (code.startsWith(" ") && code.endsWith(" ") && code.trim() !== "")
          code = code.slice(1, -1);
        this.#out.push({ kind: "code", text: code });
        this.#at = runs.lastIndex;
        return;
      }
      this.#noCode.add(length);
    }
    this.#literal(length);
  }

  #delimiter(mark) {
    let count = 1;
    while (this.#text[this.#at + count] === mark) count++;
    const before = this.#text[this.#at - 1] ?? " ";
    const after = this.#text[this.#at + count] ?? " ";
    const left =
      !/\s/.test(after) &&
      (!PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before));
    const right =
      !/\s/.test(before) &&
      (!PUNCTUATION.test(before) || /\s/.test(after) || PUNCTUATION.test(after));
    let opens = left;
    let closes = right;
    if (mark === "_") {
      opens = left && (!right || PUNCTUATION.test(before));
      closes = right && (!left || PUNCTUATION.test(after));
    }
    if (mark === "~" && count !== 2) opens = closes = false;
    if (count > 64) opens = closes = false;
    this.#at += count;
    this.#out.push(opens || closes ? { mark, count, opens, closes } : mark.repeat(count));
  }

  #closeBracket() {
    const open = this.#brackets.pop();
    const target =
      open === undefined || this.#text[this.#at + 1] !== "("
        ? null
        : readTarget(this.#text, this.#at + 1);
    if (target === null) return this.#literal(1);
    const label = resolve(this.#out.splice(open).slice(1)).flatMap(withoutLinks);
    const href = safeHref(target.address);
    this.#at = target.end;
    if (href === null) {
      // Not a link one may follow: its words stay, and its address is there to be read.
      for (const node of label) this.#out.push(node);
      if (target.address !== "") this.#out.push(` (${target.address})`);
    } else {
      this.#out.push({ kind: "a", href, inline: label.length > 0 ? label : [target.address] });
    }
  }

  #autolink(pattern) {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (match === null) return this.#literal(1);
    let address = match[1];
    let length = match[0].length;
    if (match[0] === address) {
      // The full stop of a sentence and a closing bracket are not the address's.
      const trimmed = address.replace(/[.,;:!?*_~]{1,50}$/, "");
      address = trimmed.endsWith(")") && !trimmed.includes("(") ? trimmed.slice(0, -1) : trimmed;
      length = address.length;
    }
    const href = safeHref(address);
    if (href === null || length === 0) return this.#literal(Math.max(length, 1));
    this.#out.push({ kind: "a", href, inline: [address] });
    this.#at += length;
  }

  #lineEnd() {
    const last = this.#out.at(-1);
    if (typeof last === "string" && last.endsWith("  ")) {
      this.#out[this.#out.length - 1] = last.trimEnd();
      this.#out.push({ kind: "br" });
    } else {
      this.#out.push("\n");
    }
    this.#at++;
  }
}

// A link within the words of a link: the outer one counts.
function withoutLinks(node) {
  if (typeof node === "string" || node.inline === undefined) return [node];
  const inline = node.inline.flatMap(withoutLinks);
  return node.kind === "a" ? inline : [{ ...node, inline }];
}

const isDelimiter = (item) => typeof item === "object" && item.mark !== undefined;

// Pairs the emphasis marks of a list and nests what stands between them.
function resolve(items) {
  const stack = []; // {delimiter or null, nodes}: what has been opened
  let nodes = [];
  const close = (item) => {
    // The nearest opener of the same mark; those above it stay as they were written.
    for (let at = stack.length - 1; at >= 0; at--) {
      const opener = stack[at].delimiter;
      if (opener.mark !== item.mark) continue;
      if (
        (opener.closes || item.opens) &&
        (opener.count + item.count) % 3 === 0 &&
        opener.count % 3 !== 0
      )
        continue;
      while (stack.length - 1 > at) unopen();
      const size = item.mark === "~" ? 2 : Math.min(2, opener.count, item.count);
      const kind = item.mark === "~" ? "del" : size === 2 ? "strong" : "em";
      const inner = { kind, inline: nodes };
      nodes = stack[at].nodes;
      opener.count -= size;
      item.count -= size;
      if (opener.count === 0) {
        stack.pop();
        add(nodes, inner);
      } else {
        nodes = [inner]; // the opener's other marks are still open
      }
      return true;
    }
    return false;
  };
  const unopen = () => {
    const { delimiter, nodes: outer } = stack.pop();
    add(outer, delimiter.mark.repeat(delimiter.count));
    for (const node of nodes) add(outer, node);
    nodes = outer;
  };
  for (const item of items) {
    if (!isDelimiter(item)) {
      add(nodes, item);
      continue;
    }
    const own = { ...item };
    while (own.count > 0 && own.closes && close(own));
    if (own.count === 0) continue;
    if (own.opens && stack.length < MAX_OPEN) {
      stack.push({ delimiter: own, nodes });
      nodes = [];
    } else {
      add(nodes, own.mark.repeat(own.count));
    }
  }
  while (stack.length > 0) unopen();
  return nodes;
}

export function parseInline(text) {
  return new Reader(text).read();
}
