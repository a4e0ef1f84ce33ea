// The page in Chromium against a server that misbehaves on demand.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, afterEach, before, test } from "node:test";

import { answered, closeRest, expectNoSideways, launch, openPage, send } from "./browser.mjs";
import { FakeServer } from "./fake_server.mjs";

const server = new FakeServer();
let address;
let browser;

before(async () => {
  address = await server.start();
  browser = await launch();
});
afterEach(() => closeRest(browser));
after(async () => {
  await browser?.close();
  server.stop();
});

const texts = (page, selector) => page.locator(selector).allInnerTexts();

test("a message goes out and its answer comes in, however the bytes are cut", async () => {
  const { page, close } = await openPage(browser, address);
  await send(page, "hello");
  assert.deepEqual(await texts(page, "article.assistant .markdown"), ["You said: hello. 🌊 é"]);
  assert.equal(await page.locator("article.assistant strong").innerText(), "hello");
  assert.match(
    await page.locator(".stats").innerText(),
    /^[\d.]+ tokens\/s · first token after \d+ ms · 42 tokens · prompt 5$/,
  );
  const { model, messages, stream, stream_options } = server.requests.at(-1);
  assert.deepEqual(
    { model, messages, stream, stream_options },
    {
      model: "fake-model",
      messages: [{ role: "user", content: "hello" }],
      stream: true,
      stream_options: { include_usage: true },
    },
  );
  assert.equal(await page.locator("#status").innerText(), "Answer complete.");
  assert.match(await page.locator("#spoken").textContent(), /You said: \*\*hello\*\*\. 🌊 é/);
  // It is there again after a reload.
  await page.reload();
  assert.deepEqual(await texts(page, "article.assistant .markdown"), ["You said: hello. 🌊 é"]);
  await close();
});

test("hostile text stays text", async () => {
  const { page, close } = await openPage(browser, address);
  await send(page, "hostile");
  const answer = page.locator("article.assistant .markdown");
  assert.equal(await answer.locator("script, img, iframe, svg, style, object").count(), 0);
  const links = await answer.locator("a").evaluateAll((all) => all.map((a) => [a.href, a.rel]));
  assert.deepEqual(links, [
    ["https://tracker.example/p.png", "noopener noreferrer nofollow"],
    ["https://example.org/a?b=c", "noopener noreferrer nofollow"],
  ]);
  assert.match(await answer.innerText(), /<script>window\.hacked = 1<\/script>/);
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  const withEvents = await answer.evaluate(
    (node) =>
      [...node.querySelectorAll("*")].filter((child) =>
        [...child.attributes].some(({ name }) => name.startsWith("on") || name === "style"),
      ).length,
  );
  assert.equal(withEvents, 0);
  await close();
});

test("refusals and broken answers are told in words, and Retry tries again", async () => {
  const { page, close } = await openPage(browser, address);
  const failure = page.locator(".failure");
  server.failing = 1;
  await send(page, "busy");
  assert.match(
    await failure.innerText(),
    /^The server has too much to do\. 64 requests wait already\. Try again in 2 s\./,
  );
  assert.equal(await failure.getAttribute("role"), "alert");
  await failure.getByRole("button", { name: "Retry" }).click();
  await answered(page);
  assert.equal(await failure.count(), 0);
  assert.deepEqual(await texts(page, "article.assistant .markdown"), ["You said: busy. 🌊 é"]);
  for (const [said, words] of [
    ["refuse", /refuses this request\. top_k must be whole\./],
    ["cut", /connection was lost in the middle|ended the answer in its middle/],
    ["break", /The answer broke off\. the model stumbled\./],
  ]) {
    await send(page, said);
    assert.match(await failure.last().innerText(), words);
    if (said !== "refuse")
      assert.equal(
        await page.locator("article.assistant .markdown").last().innerText(),
        "Half an ans",
      );
  }
  await close();
});

test("a key is asked for, sent, and kept for this tab alone", async () => {
  const { page, close } = await openPage(browser, address);
  await send(page, "key");
  assert.match(await page.locator(".failure").innerText(), /asks for an API key/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "key");
  await page.locator("#key").fill("sesame");
  await page.locator(".failure button").click();
  await answered(page);
  assert.equal(server.requests.at(-1).authorization, "Bearer sesame");
  assert.equal(await page.locator(".failure").count(), 0);
  const kept = await page.evaluate(() => [
    JSON.stringify(localStorage),
    JSON.stringify(sessionStorage),
  ]);
  assert.ok(!kept[0].includes("sesame") && kept[1].includes("sesame"));
  await close();
});

test("stopping hangs up, keeps what came, and asks no more", async () => {
  const { page, close } = await openPage(browser, address);
  const { gone } = server;
  await page.locator("#prompt").fill("slow");
  await page.locator("#prompt").press("Enter");
  await page.getByText("word3").waitFor();
  assert.ok(await page.locator("#send").isHidden());
  await page.keyboard.press("Escape");
  await answered(page);
  assert.match(await page.locator(".stats").innerText(), /stopped by you$/);
  for (let n = 0; n < 100 && server.gone === gone; n++) await page.waitForTimeout(20);
  assert.equal(server.gone, gone + 1);
  // Deleting while an answer comes leaves none of it behind.
  await page.locator("#prompt").fill("slow");
  await page.locator("#prompt").press("Enter");
  await page.locator("article.live").getByText("word1").waitFor();
  await page
    .locator("article.user")
    .last()
    .getByRole("button", { name: "Delete from here" })
    .click();
  await answered(page);
  assert.equal(await page.locator("article").count(), 2);
  await close();
});

test("several chats, deleting with undo, export and import", async () => {
  const { page, close } = await openPage(browser, address);
  await send(page, "first chat");
  await page.getByRole("button", { name: "New chat" }).first().click();
  await page.locator("#set-seed").fill("11");
  await send(page, "second chat");
  assert.deepEqual(await texts(page, "#chats .open"), ["second chat", "first chat"]);
  assert.equal(server.requests.at(-1).seed, 11);
  const [saved] = await Promise.all([
    page.waitForEvent("download"),
    page.locator("#export").click(),
  ]);
  const exported = readFileSync(await saved.path());
  await page.getByRole("button", { name: "Delete the chat second chat" }).click();
  assert.deepEqual(await texts(page, "#chats .open"), ["first chat"]);
  assert.deepEqual(await texts(page, "article.user .body"), ["first chat"]);
  await page.getByRole("button", { name: "Undo" }).click();
  assert.deepEqual(await texts(page, "#chats .open"), ["second chat", "first chat"]);
  assert.equal(await page.locator("#set-seed").inputValue(), "11");
  await page.evaluate(() => localStorage.clear());
  await page.reload();
  assert.equal(await page.locator("article").count(), 0);
  const file = { name: "chats.json", mimeType: "application/json", buffer: exported };
  await page.locator("#import-file").setInputFiles(file);
  await page.getByText("Imported 2 chats.").waitFor();
  assert.equal(await page.locator("article").count(), 2);
  await page.locator("#import-file").setInputFiles({ ...file, buffer: Buffer.from("{}") });
  await page.getByText("was not imported: it is no export of this page.").waitFor();
  await close();
});

test("a setting that makes no request is shown, not sent", async () => {
  const { page, close } = await openPage(browser, address);
  const sent = server.requests.length;
  await page.locator("#set-temperature").fill("hot");
  await page.locator("#prompt").fill("hi");
  await page.locator("#prompt").press("Enter");
  assert.equal(
    await page.locator("#problems").innerText(),
    "temperature must be a number from 0 to 2.",
  );
  assert.equal(await page.locator("#set-temperature").getAttribute("aria-invalid"), "true");
  assert.equal(await page.evaluate(() => document.activeElement.id), "set-temperature");
  assert.equal(server.requests.length, sent);
  assert.equal(await page.locator("#prompt").inputValue(), "hi");
  await close();
});

test("the watch tab draws, reads once a second, and rests while it is not seen", async () => {
  const { page, close } = await openPage(browser, `${address}/#watch`);
  await page.waitForFunction(
    () =>
      document.querySelectorAll(".plot .series").length >= 25 &&
      [...document.querySelectorAll(".plot .series")].filter((line) =>
        /L/.test(line.getAttribute("d")),
      ).length >= 20,
  );
  assert.match(
    await page.locator("figure").first().innerText(),
    /Tokens a second\s+generated\s+[1-9][\d.]*\s+prompt\s+[1-9]/,
  );
  await page.getByRole("tab", { name: "Chat" }).click();
  const seen = server.readings;
  await page.waitForTimeout(2300);
  assert.ok(server.readings <= seen + 1);
  await close();
});

for (const [name, options] of [
  ["a phone of 360 px", { viewport: { width: 360, height: 640 }, hasTouch: true }],
  [
    "a phone in the dark without motion",
    { viewport: { width: 360, height: 640 }, colorScheme: "dark", reducedMotion: "reduce" },
  ],
  ["a tablet", { viewport: { width: 768, height: 1024 } }],
  ["200 % zoom", { viewport: { width: 600, height: 400 } }],
]) {
  test(`nothing sticks out on ${name}`, async () => {
    const { page, close } = await openPage(browser, address, options);
    await expectNoSideways(page);
    await send(page, `${"longword".repeat(40)} and \`code\``);
    await send(page, "hostile");
    await expectNoSideways(page);
    await page.locator("#drawer").click();
    assert.ok(await page.locator("#side").isVisible());
    await expectNoSideways(page);
    await page.keyboard.press("Escape");
    assert.ok(await page.locator("#side").isHidden());
    await page.getByRole("tab", { name: "Watch" }).click();
    await page.waitForTimeout(200);
    await expectNoSideways(page);
    await close();
  });
}

// Of all text that is seen: its colour against the nearest ground under it. WCAG AA: 4.5 to 1.
for (const colorScheme of ["light", "dark"]) {
  test(`text has contrast in ${colorScheme}`, async () => {
    const { page, close } = await openPage(browser, address, { colorScheme });
    server.failing = 1;
    await send(page, "hostile");
    await send(page, "hello");
    const low = await page.evaluate(() => {
      const rgb = (text) => text.match(/[\d.]+/g).map(Number);
      const light = (c) =>
        [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
          const v = c[i] / 255;
          return sum + weight * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        }, 0);
      const ground = (node) => {
        for (let at = node; at; at = at.parentElement) {
          const color = rgb(getComputedStyle(at).backgroundColor);
          if (color.length === 3 || color[3] > 0) return color;
        }
        return [255, 255, 255];
      };
      return [...document.querySelectorAll("body *")]
        .filter(
          (node) =>
            node.checkVisibility() &&
            [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim() !== ""),
        )
        .filter((node) => !node.closest(".off-screen, noscript"))
        .map((node) => {
          const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort(
            (x, y) => y - x,
          );
          return [(a + 0.05) / (b + 0.05), `${node.tagName}#${node.id}.${node.className}`];
        })
        .filter(([ratio]) => ratio < 4.5);
    });
    assert.deepEqual(low, []);
    await close();
  });
}

test("every control has a name, and every label a control", async () => {
  const { page, close } = await openPage(browser, address);
  await send(page, "hello");
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll("button, input, textarea, select, [role]")]
      .filter(
        (node) =>
          node.checkVisibility() &&
          !["tabpanel", "status", "alert"].includes(node.getAttribute("role")),
      )
      .filter(
        (node) =>
          !(
            node.getAttribute("aria-label") ||
            node.getAttribute("aria-labelledby") ||
            node.textContent.trim() ||
            node.labels?.length
          ),
      )
      .map((node) => node.outerHTML.slice(0, 80)),
  );
  assert.deepEqual(nameless, []);
  const dangling = await page.evaluate(
    () => [...document.querySelectorAll("label")].filter((label) => label.control === null).length,
  );
  assert.equal(dangling, 0);
  await close();
});
