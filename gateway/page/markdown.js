// Markdown as models write it, into DOM nodes. Nothing here reads or writes HTML: text goes into
// text nodes, the tags are the ones named below, and the only attributes are a class, a list's
// first number, and the address of an http(s) link.
//
// parseBlocks(text) -> blocks, plain objects; renderBlock(block, document) -> node;
// MarkdownView keeps a container up to date while its text grows.

import { parseInline } from "./inline.js";

const MAX_DEPTH = 8; // of quotes and lists within each other; deeper ones are text

// Each of these is linear in the line: no two neighbours match the same characters.
const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: (.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:( +)(.*)|)$/;

const isBlank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

function cells(row) {
  const inner = row
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function startsTable(lines, at) {
  return (
    at + 1 < lines.length &&
    lines[at].includes("|") &&
    lines[at + 1].includes("-") &&
    cells(lines[at + 1]).every((cell) => /^:?-+:?$/.test(cell)) &&
    cells(lines[at]).length === cells(lines[at + 1]).length
  );
}

function startsBlock(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  return (
    FENCE.test(line) ||
    HEADING.test(line) ||
    RULE.test(line) ||
    QUOTE.test(line) ||
    startsTable(lines, at) ||
    // A number that only happens to begin a line of a paragraph begins no list, unless it is 1.
    (item !== null && item[4] && (!/\d/.test(item[2]) || Number.parseInt(item[2], 10) === 1))
  );
}

function parseFence(lines, at) {
  const [, indent, mark, info] = FENCE.exec(lines[at]);
  const code = [];
  let end = at + 1;
  for (; end < lines.length; end++) {
    const trimmed = lines[end].trim();
    if (trimmed.startsWith(mark) && /^(`+|~+)$/.test(trimmed) && indentOf(lines[end]) < 4) break;
    code.push(lines[end].slice(Math.min(indent.length, indentOf(lines[end]))));
  }
  const language = /^[\w+#.-]{1,30}/.exec(info.trim())?.[0] ?? "";
  return [{ kind: "code", language, text: code.join("\n") }, end + 1];
}

function parseQuote(lines, at, depth) {
  const inner = [];
  let end = at;
  while (
    end < lines.length &&
    (QUOTE.test(lines[end]) || (!isBlank(lines[end]) && !startsBlock(lines, end)))
  ) {
    inner.push(lines[end++].replace(QUOTE, ""));
  }
  return [{ kind: "quote", blocks: parseLines(inner, depth + 1) }, end];
}

function parseList(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const list = {
    kind: ordered ? "ol" : "ul",
    start: ordered ? Number.parseInt(first[2], 10) : 1,
    items: [],
    loose: false,
  };
  const base = first[1].length;
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (
      item === null ||
      item[1].length > base + 3 ||
      item[1].length < base ||
      RULE.test(lines[end])
    )
      break;
    if (/\d/.test(item[2]) !== ordered) break;
    // What stands under the item's text belongs to it.
    const gap = item[3] === undefined || item[3].length > 4 ? 1 : item[3].length;
    const content = item[1].length + item[2].length + gap;
    const inner = [(item[3] ?? "").slice(gap) + (item[4] ?? "")];
    for (end++; end < lines.length; end++) {
      const line = lines[end];
      if (isBlank(line)) {
        let next = end;
        while (next < lines.length && isBlank(lines[next])) next++;
        if (next === lines.length) break;
        const follows = ITEM.exec(lines[next]);
        const deeper = indentOf(lines[next]) >= Math.min(content, base + 2);
        if (!deeper && (follows === null || follows[1].length < base)) break;
        if (!deeper && /\d/.test(follows[2]) !== ordered) break;
        list.loose = true;
        if (!deeper) break;
        inner.push("");
      } else if (indentOf(line) >= Math.min(content, base + 2)) {
        inner.push(line.slice(Math.min(content, indentOf(line))));
      } else if (ITEM.test(line) || startsBlock(lines, end)) {
        break;
      } else if (isBlank(lines[end - 1])) {
        break;
      } else {
        inner.push(line.trimStart());
      }
    }
    list.items.push(parseLines(inner, depth + 1));
    while (end < lines.length && isBlank(lines[end]) && list.loose) {
      // Only an item may follow; the loop above stood still before anything else.
      end++;
    }
  }
  return [list, end];
}

function parseTable(lines, at) {
  const align = cells(lines[at + 1]).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left",
  );
  const head = cells(lines[at]).map((cell) => parseInline(cell));
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && !isBlank(lines[end]) && lines[end].includes("|"); end++) {
    const row = cells(lines[end])
      .slice(0, head.length)
      .map((cell) => parseInline(cell));
    while (row.length < head.length) row.push([]);
    rows.push(row);
  }
  return [{ kind: "table", align, head, rows }, end];
}

function parseParagraph(lines, at) {
  const inner = [lines[at].trimStart()];
  let end = at + 1;
  for (; end < lines.length && !isBlank(lines[end]) && !startsBlock(lines, end); end++) {
    inner.push(lines[end].trimStart());
  }
  return [{ kind: "p", inline: parseInline(inner.join("\n").trimEnd()) }, end];
}

function parseLines(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    let block;
    if (isBlank(line)) {
      at++;
      continue;
    }
    const heading = HEADING.exec(line);
    if (FENCE.test(line)) {
      [block, at] = parseFence(lines, at);
    } else if (heading !== null) {
      block = {
        kind: `h${heading[1].length}`,
        inline: parseInline((heading[2] ?? "").trim().replace(/(^|\s)#+$/, "")),
      };
      at++;
    } else if (RULE.test(line)) {
      block = { kind: "hr" };
      at++;
    } else if (QUOTE.test(line) && depth < MAX_DEPTH) {
      [block, at] = parseQuote(lines, at, depth);
    } else if (ITEM.test(line) && depth < MAX_DEPTH) {
      [block, at] = parseList(lines, at, depth);
    } else if (startsTable(lines, at)) {
      [block, at] = parseTable(lines, at);
    } else {
      [block, at] = parseParagraph(lines, at);
    }
    blocks.push(block);
  }
  return blocks;
}

export function parseBlocks(text) {
  return parseLines(text.replace(/\r\n?/g, "\n").replaceAll("\t", "    ").split("\n"), 0);
}

function appendInline(parent, nodes, document) {
  for (const node of nodes) {
    if (typeof node === "string") {
      parent.append(document.createTextNode(node));
      continue;
    }
    const element = document.createElement(node.kind);
    if (node.kind === "code") element.textContent = node.text;
    else if (node.kind !== "br") appendInline(element, node.inline, document);
    if (node.kind === "a") {
      element.setAttribute("href", node.href);
      element.setAttribute("rel", "noopener noreferrer nofollow");
      element.setAttribute("target", "_blank");
    }
    parent.append(element);
  }
}

function renderCode(block, document, copy) {
  const figure = document.createElement("div");
  figure.className = "code";
  const bar = document.createElement("div");
  bar.className = "code-bar";
  const language = document.createElement("span");
  language.textContent = block.language || "text";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy this code");
  button.addEventListener("click", () => copy(block.text, button));
  bar.append(language, button);
  const pre = document.createElement("pre");
  pre.setAttribute("tabindex", "0"); // it scrolls sideways: the keyboard must reach it
  pre.setAttribute("aria-label", `Code, ${block.language || "text"}`);
  pre.setAttribute("role", "region");
  const code = document.createElement("code");
  code.textContent = block.text;
  pre.append(code);
  figure.append(bar, pre);
  return figure;
}

function renderTable(block, document) {
  const row = (inlines, tag) => {
    const tr = document.createElement("tr");
    inlines.forEach((inline, column) => {
      const cell = document.createElement(tag);
      if (tag === "th") cell.setAttribute("scope", "col");
      cell.className = `align-${block.align[column] ?? "left"}`;
      appendInline(cell, inline, document);
      tr.append(cell);
    });
    return tr;
  };
  const scroll = document.createElement("div");
  scroll.className = "table-scroll";
  scroll.setAttribute("tabindex", "0");
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "Table");
  const table = document.createElement("table");
  const head = document.createElement("thead");
  head.append(row(block.head, "th"));
  const body = document.createElement("tbody");
  body.append(...block.rows.map((cellsOfRow) => row(cellsOfRow, "td")));
  table.append(head, body);
  scroll.append(table);
  return scroll;
}

// `copy(text, button)` is what a code block's button does.
export function renderBlock(block, document, copy) {
  if (block.kind === "code") return renderCode(block, document, copy);
  if (block.kind === "table") return renderTable(block, document);
  if (block.kind === "hr") return document.createElement("hr");
  if (block.kind === "quote") {
    const quote = document.createElement("blockquote");
    quote.append(...block.blocks.map((inner) => renderBlock(inner, document, copy)));
    return quote;
  }
  if (block.kind === "ul" || block.kind === "ol") {
    const list = document.createElement(block.kind);
    if (block.start !== 1) list.setAttribute("start", String(block.start));
    for (const blocks of block.items) {
      const item = document.createElement("li");
      for (const inner of blocks) {
        if (inner.kind === "p" && !block.loose) appendInline(item, inner.inline, document);
        else item.append(renderBlock(inner, document, copy));
      }
      list.append(item);
    }
    return list;
  }
  const element = document.createElement(block.kind);
  appendInline(element, block.inline, document);
  return element;
}

// Shows a text that grows: only blocks that changed are made anew, so a selection or a focused
// button in what stands already stays.
export class MarkdownView {
  #container;
  #copy;
  #shown = []; // per child: its block as JSON

  constructor(container, copy) {
    this.#container = container;
    this.#copy = copy;
  }

  update(text) {
    const blocks = parseBlocks(text);
    const document = this.#container.ownerDocument;
    const keys = blocks.map((block) => JSON.stringify(block));
    let same = 0;
    while (same < keys.length && same < this.#shown.length && keys[same] === this.#shown[same])
      same++;
    while (this.#container.childNodes.length > same) this.#container.lastChild.remove();
    for (const block of blocks.slice(same)) {
      this.#container.append(renderBlock(block, document, this.#copy));
    }
    this.#shown = keys;
  }
}
