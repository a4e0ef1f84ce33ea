import assert from "node:assert/strict";
import { test } from "node:test";

import { parseInline, safeHref } from "../../../gateway/page/inline.js";
import { MarkdownView, parseBlocks, renderBlock } from "../../../gateway/page/markdown.js";
import { fakeDocument, shape, strictDocument } from "./fake_document.mjs";

const render = (text, document = fakeDocument()) =>
  parseBlocks(text)
    .map((block) => shape(renderBlock(block, document, () => {})))
    .join("");

const SHAPES = [
  ["plain words", "<p>plain words</p>"],
  ["two\nlines", "<p>two\nlines</p>"],
  ["one\n\ntwo", "<p>one</p><p>two</p>"],
  ["# A\n## B ##\n###### C", "<h1>A</h1><h2>B</h2><h6>C</h6>"],
  ["#no heading", "<p>#no heading</p>"],
  [
    "**bold** and *it* and ***both***",
    "<p><strong>bold</strong> and <em>it</em> and <em><strong>both</strong></em></p>",
  ],
  [
    "__bold__ _it_ snake_case_name 2*3*4",
    "<p><strong>bold</strong> <em>it</em> snake_case_name 2<em>3</em>4</p>",
  ],
  ["*open **and open", "<p>*open **and open</p>"],
  ["**a *b* c** d", "<p><strong>a <em>b</em> c</strong> d</p>"],
  ["a * b * c", "<p>a * b * c</p>"],
  ["~~gone~~ ~not~", "<p><del>gone</del> ~not~</p>"],
  ["`a*b*` ``x`y`` `open", "<p><code>a*b*</code> <code>x`y</code> `open</p>"],
  ["\\*not\\* 1\\. \\a", "<p>*not* 1. \\a</p>"],
  ["end  \nnext\\\nlast", "<p>end<br></br>next<br></br>last</p>"],
  ["---\n***\n_ _ _", "<hr></hr><hr></hr><hr></hr>"],
  ["> a\n> b\n\nc", "<blockquote><p>a\nb</p></blockquote><p>c</p>"],
  ["> > deep", "<blockquote><blockquote><p>deep</p></blockquote></blockquote>"],
  ["- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"],
  ["* a\n* b", "<ul><li>a</li><li>b</li></ul>"],
  [
    "1. a\n2. b\n   * c\n   * d\n3. e",
    "<ol><li>a</li><li>b<ul><li>c</li><li>d</li></ul></li><li>e</li></ol>",
  ],
  ["3) a\n4) b", "<ol start=3><li>a</li><li>b</li></ol>"],
  ["- a\n\n- b\n\nafter", "<ul><li><p>a</p></li><li><p>b</p></li></ul><p>after</p>"],
  ["- a\n\n  more of a\n- b", "<ul><li><p>a</p><p>more of a</p></li><li><p>b</p></li></ul>"],
  ["- a\n1. b", "<ul><li>a</li></ul><ol><li>b</li></ol>"],
  ["Text\n- a\n- b\nlazy", "<p>Text</p><ul><li>a</li><li>b\nlazy</li></ul>"],
  ["In\n1984. It was", "<p>In\n1984. It was</p>"],
  [
    "1. step\n\n   ```sh\n   ls\n   ```\n2. next",
    "<ol><li><p>step</p><div><div><span>sh</span><button>Copy</button></div><pre><code>ls</code></pre></div></li><li><p>next</p></li></ol>",
  ],
  [
    "```js\nlet a = `<b>`;\n\n  b\n```\nafter",
    "<div><div><span>js</span><button>Copy</button></div><pre><code>let a = `<b>`;\n\n  b</code></pre></div><p>after</p>",
  ],
  [
    "~~~\n```\n~~~",
    "<div><div><span>text</span><button>Copy</button></div><pre><code>```</code></pre></div>",
  ],
  [
    "````\n```\n````",
    "<div><div><span>text</span><button>Copy</button></div><pre><code>```</code></pre></div>",
  ],
  [
    "```\nstill streaming",
    "<div><div><span>text</span><button>Copy</button></div><pre><code>still streaming</code></pre></div>",
  ],
  [
    "| a | b |\n|---|:-:|\n| 1 | **2** |\n| x \\| y |",
    "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><strong>2</strong></td></tr><tr><td>x | y</td><td></td></tr></tbody></table></div>",
  ],
  [
    "a | b\n--- | ---\n1 | 2\n\nafter",
    "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table></div><p>after</p>",
  ],
  ["a | b\nno table", "<p>a | b\nno table</p>"],
  ['[x](https://a.example/b_c_d "t")', "<p><a href=https://a.example/b_c_d>x</a></p>"],
  ["[**x** y](http://a.example)", "<p><a href=http://a.example/><strong>x</strong> y</a></p>"],
  [
    "see https://a.example/x_(y), and (https://b.example).",
    "<p>see <a href=https://a.example/x_(y)>https://a.example/x_(y)</a>, and (<a href=https://b.example/>https://b.example</a>).</p>",
  ],
  [
    "[https://a.example](https://b.example)",
    "<p><a href=https://b.example/>https://a.example</a></p>",
  ],
  ["<https://a.example/>", "<p><a href=https://a.example/>https://a.example/</a></p>"],
  ["![picture](https://a.example/p.png)", "<p><a href=https://a.example/p.png>picture</a></p>"],
  ["[a] (b) ] [", "<p>[a] (b) ] [</p>"],
  ["hhttp://x xhttps://y", "<p>hhttp://x xhttps://y</p>"],
  ["tab\tin", "<p>tab    in</p>"],
  ["", ""],
];

for (const [text, expected] of SHAPES) {
  test(`markdown: ${JSON.stringify(text).slice(0, 60)}`, () =>
    assert.equal(render(text), expected));
}

const ATTACKS = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  '<a href="javascript:alert(1)">x</a>',
  "[x](javascript:alert(1))",
  "[x](JaVaScRiPt:alert(1))",
  "[x](java\nscript:alert(1))",
  "[x](\u0001javascript:alert(1))",
  "[x](<javascript:alert(1)>)",
  '[x](  javascript:alert(1) "t")',
  "[x](data:text/html;base64,PHNjcmlwdD4=)",
  "[x](vbscript:x) [y](file:///etc/passwd) [z](blob:https://a/b) [w](//evil.example) [v](/relative)",
  "![x](javascript:alert(1))",
  "![x](https://evil.example/track.png?q=secret)",
  "<javascript:alert(1)>",
  "[x](https://user:password@evil.example/)",
  '[a](https://ok.example" onmouseover="alert(1))',
  '```html" onload="alert(1)\n<svg/onload=alert(1)>\n```',
  "| <b onclick=x> | y |\n|---|---|\n| <iframe src=//e> | [q](javascript:1) |",
  "# <h1 style=x>\n> <object>\n- <embed>",
  "[x](https://a.example/<script>)",
  "\u202e[gpj.exe](https://a.example)",
  "[[x](javascript:1)](javascript:2)",
];
const TAGS = new Set(
  (
    "a blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre span strong table tbody td th " +
    "thead tr ul"
  ).split(" "),
);
const ATTRIBUTES = new Set([
  "href",
  "rel",
  "target",
  "tabindex",
  "role",
  "aria-label",
  "scope",
  "start",
]);

for (const attack of ATTACKS) {
  test(`markdown is safe: ${JSON.stringify(attack).slice(0, 60)}`, () => {
    const document = strictDocument();
    parseBlocks(attack).map((block) => renderBlock(block, document, () => {}));
    for (const node of document.inner.made) {
      assert.ok(TAGS.has(node.tag), node.tag);
      for (const [name, value] of Object.entries(node.attributes)) {
        assert.ok(ATTRIBUTES.has(name), name);
        if (name === "href") assert.match(value, /^https?:\/\/[^"\s<>]+$/);
        if (name === "aria-label") assert.match(value, /^(Code, [\w+#.-]+|Table|Copy this code)$/);
      }
      if (node.tag === "a") assert.equal(node.attributes.rel, "noopener noreferrer nofollow");
      assert.match(node.className, /^[\w -]*$/);
    }
  });
}

test("only http and https addresses are followed", () => {
  assert.equal(safeHref("https://a.example/x"), "https://a.example/x");
  assert.equal(safeHref("http://a.example"), "http://a.example/");
  for (const bad of [
    "javascript:1",
    " javascript:1",
    "\tjavascript:1",
    "ftp://a",
    "/x",
    "//a",
    "a.example",
    "https://",
    "https://u@a",
  ]) {
    assert.equal(safeHref(bad), null, bad);
  }
});

test("no text is lost: words of every block are in what is shown", () => {
  for (const [text] of SHAPES) {
    const words = text.match(/[a-z]{2,}/g) ?? [];
    const shown = render(text);
    for (const word of words) assert.ok(shown.includes(word), `${word} of ${text}`);
  }
});

test("every beginning of a text renders, as it does while it streams", () => {
  const text = SHAPES.map(([source]) => source).join("\n\n");
  for (let end = 0; end <= text.length; end++) render(text.slice(0, end));
});

// What no model writes but anyone can send: quadratic or exponential time would show as minutes.
const HOSTILE = {
  stars: "*a ".repeat(20000),
  strong: "**a".repeat(20000),
  brackets: "[".repeat(50000),
  closing: "[x](".repeat(20000),
  backticks: Array.from({ length: 400 }, (_, n) => "`".repeat(n)).join(" "),
  quotes: ">".repeat(50000),
  lists: Array.from({ length: 3000 }, (_, n) => `${" ".repeat(n % 40)}- x`).join("\n"),
  loose: "- x\n\n".repeat(20000),
  pipes: `${"|a".repeat(20000)}\n${"|-".repeat(20000)}`,
  spaces: `# ${" ".repeat(100000)}x`,
  rule: `${"- ".repeat(50000)}x`,
  table: `a|b\n-|${" ".repeat(100000)}x`,
  fence: `\`\`\`${" ".repeat(100000)}\``,
  links: "https://a.example/".repeat(5000),
  escapes: "\\".repeat(100000),
  target: `[x](${"(a".repeat(50000)}`,
  blanks: "\n".repeat(100000),
  words: "a h t ".repeat(50000),
  underscores: "_a_b".repeat(20000),
  target_spaces: `[x](${" ".repeat(100000)}`,
};
for (const [name, text] of Object.entries(HOSTILE)) {
  test(`hostile markdown takes little time: ${name}`, () => {
    const began = performance.now();
    parseBlocks(text);
    assert.ok(performance.now() - began < 2000, `${performance.now() - began} ms`);
  });
}

test("a growing text keeps the nodes that did not change", () => {
  const document = fakeDocument();
  const host = document.createElement("div");
  const view = new MarkdownView(host, () => {});
  view.update("# Title\n\none\n\ntw");
  const [title, one, two] = host.childNodes;
  view.update("# Title\n\none\n\ntwo\n\n- x");
  assert.equal(host.childNodes.length, 4);
  assert.equal(host.childNodes[0], title);
  assert.equal(host.childNodes[1], one);
  assert.notEqual(host.childNodes[2], two);
  assert.equal(
    host.childNodes.map((node) => shape(node)).join(""),
    "<h1>Title</h1><p>one</p><p>two</p><ul><li>x</li></ul>",
  );
  view.update("other");
  assert.equal(host.childNodes.map((node) => shape(node)).join(""), "<p>other</p>");
});

test("inline nodes are plain values", () => {
  assert.deepEqual(parseInline("a **b**"), ["a ", { kind: "strong", inline: ["b"] }]);
});
