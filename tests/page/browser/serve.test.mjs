// The page in Chromium as `weir serve` serves it, with the model that ships.

import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";

import { parseMetrics, sum } from "../../../gateway/page/metrics.js";
import { answered, closeRest, expectNoSideways, launch, openPage, send } from "./browser.mjs";
import { CSP } from "./fake_server.mjs";
import { WeirServer } from "./weir_server.mjs";

const server = new WeirServer();
let address;
let browser;

before(async () => {
  address = await server.start();
  browser = await launch();
});
afterEach(() => closeRest(browser));
after(async () => {
  await browser?.close();
  await server.stop();
});

const metric = async (name, labels) =>
  sum(parseMetrics(await (await fetch(`${address}/metrics`)).text()), name, labels);

async function greedy(page) {
  await page.locator("#set-temperature").fill("0");
}

test("the files have their headers, and change only with their contents", async () => {
  const page = await fetch(`${address}/`);
  assert.equal(page.status, 200);
  assert.equal(page.headers.get("content-security-policy"), CSP);
  assert.match(page.headers.get("content-type"), /^text\/html/);
  const script = await fetch(`${address}/page/app.js`);
  assert.match(script.headers.get("content-type"), /^text\/javascript/);
  assert.equal(script.headers.get("content-encoding"), "gzip");
  const again = await fetch(`${address}/page/app.js`, {
    headers: { "If-None-Match": script.headers.get("etag") },
  });
  assert.equal(again.status, 304);
  assert.equal((await fetch(`${address}/page/embed.py`)).status, 404);
});

test("an answer streams in, its reasoning folded, with its times under it", async () => {
  const { page, close } = await openPage(browser, address);
  await page.getByText("weir-tiny", { exact: true }).waitFor();
  await greedy(page);
  await send(page, "What is 27 + 48?");
  const answer = page.locator("article.assistant");
  assert.equal(await answer.locator(".markdown").innerText(), "27 + 48 = 75");
  const details = answer.locator("details.reasoning");
  assert.equal(await details.getAttribute("open"), null);
  assert.match(await details.locator("summary").innerText(), /^Reason(ing|ed for \d+\.\d s)$/);
  assert.ok(await details.locator("div").isHidden());
  await details.locator("summary").click();
  assert.match(await details.locator("div").innerText(), /7\+8=15/);
  assert.match(
    await answer.locator(".stats").innerText(),
    /^\d+(\.\d)? tokens\/s · first token after [\d.]+ m?s · \d+ tokens · prompt \d+$/,
  );

  // Another question in the place of the first: what came after it is gone.
  await page.getByRole("button", { name: "Edit" }).click();
  await page.locator("#edit").fill("What is 12 + 30?");
  await page.locator("#edit").press("Enter");
  await answered(page);
  assert.equal(await page.locator("article").count(), 2);
  assert.equal(await answer.locator(".markdown").innerText(), "12 + 30 = 42");

  await send(page, "What is 5 + 4?");
  assert.deepEqual(await page.locator("article.assistant .markdown").allInnerTexts(), [
    "12 + 30 = 42",
    "5 + 4 = 9",
  ]);
  const asked = await metric("weir_requests_total");
  await page.getByRole("button", { name: "Regenerate" }).first().click();
  await answered(page);
  assert.deepEqual(await page.locator("article.assistant .markdown").allInnerTexts(), [
    "12 + 30 = 42",
  ]);
  assert.equal(await metric("weir_requests_total"), asked + 1);
  for (let tries = 0; tries < 200 && (await metric("weir_open_streams")) > 0; tries++)
    await page.waitForTimeout(10);
  assert.equal(await metric("weir_open_streams"), 0); // an answer that ended holds nothing
  await close();
});

test("a long answer grows while it comes; Stop ends it on the server too", async () => {
  const { page, close } = await openPage(browser, address);
  // The small model's tales may be short; this one goes on.
  await page.route("**/v1/chat/completions", (route) =>
    route.continue({
      postData: JSON.stringify({
        ...route.request().postDataJSON(),
        ignore_eos: true,
        seed: 6,
        max_tokens: 6000,
      }),
    }),
  );
  const cancelled = (await metric("weir_requests_total", { outcome: "cancelled" })) ?? 0;
  await page.locator("#prompt").fill("Tell me a tale about a fox.");
  await page.locator("#prompt").press("Enter");
  const lengths = [];
  while (lengths.length < 4) {
    await page.waitForFunction(
      (last) => (document.querySelector("article.live .body")?.textContent.length ?? 0) > last,
      lengths.at(-1) ?? 0,
    );
    lengths.push(
      await page.locator("article.live .body").evaluate((node) => node.textContent.length),
    );
  }
  await page.locator("#stop").click();
  await answered(page);
  assert.match(await page.locator(".stats").innerText(), /stopped by you$/);
  for (let tries = 0; tries < 200 && (await metric("weir_open_streams")) > 0; tries++)
    await page.waitForTimeout(10);
  assert.equal(await metric("weir_requests_total", { outcome: "cancelled" }), cancelled + 1);
  await close();
});

test("a tool is called, its result given, and the answer made from it", async () => {
  const { page, close } = await openPage(browser, address);
  await greedy(page);
  await page.locator("#example-tools").click();
  await send(page, "What is the weather in Paris?");
  const call = page.locator(".call");
  assert.equal(await call.locator("h3").innerText(), "Calls the tool get_weather");
  assert.deepEqual(JSON.parse(await call.locator("pre").innerText()), { city: "Paris" });
  assert.equal(await page.evaluate(() => document.activeElement.id), "result-0");
  await page.keyboard.type('{"temperature": 21, "sky": "sunny"}');
  await page.keyboard.press("Control+Enter");
  await answered(page);
  const answer = await page.locator("article.assistant .markdown").last().innerText();
  assert.match(answer, /21 degrees and sunny/);
  assert.equal(await page.locator(".results").count(), 0);
  await close();
});

test("a refusal of the server is shown in its words", async () => {
  const { page, close } = await openPage(browser, address);
  await page.locator("#set-max_tokens").fill("100000000");
  await send(page, "hi");
  assert.match(await page.locator(".failure").innerText(), /refuses this request\. .*\d/);
  await close();
});

test("by the keyboard alone, on a phone's width", async () => {
  const { page, close } = await openPage(browser, address, {
    viewport: { width: 360, height: 640 },
  });
  const focus = () =>
    page.evaluate(() => document.activeElement.id || document.activeElement.textContent);
  assert.equal(await focus(), "prompt");
  await page.keyboard.type("What is 3 + 4?");
  await page.keyboard.press("Enter");
  await answered(page);
  await expectNoSideways(page);
  const back = [];
  for (let step = 0; step < 12 && back.at(-1) !== "Edit"; step++) {
    await page.keyboard.press("Shift+Tab");
    back.push(await focus());
  }
  assert.ok(back.includes("Regenerate") && back.at(-1) === "Edit", back.join(", "));
  await page.keyboard.press("Enter");
  assert.equal(await focus(), "edit");
  await page.keyboard.press("Escape");
  assert.equal(await focus(), "prompt");
  for (let step = 0; step < 20 && (await focus()) !== "tab-chat"; step++)
    await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("ArrowRight");
  assert.equal(await focus(), "tab-watch");
  assert.ok(await page.locator("#panel-watch").isVisible());
  await page.keyboard.press("ArrowLeft");
  await page.keyboard.press("Shift+Tab");
  assert.equal(await focus(), "drawer");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  assert.equal(await page.locator("#drawer").getAttribute("aria-expanded"), "true");
  await page.keyboard.press("Escape");
  assert.equal(await focus(), "drawer");
  // Where the focus is can be seen.
  assert.notEqual(
    await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle),
    "none",
  );
  await close();
});

test("the watch tab shows the load", async () => {
  const { page, close } = await openPage(browser, `${address}/#watch`);
  const stop = new AbortController();
  const load = Array.from({ length: 6 }, async (_, seed) => {
    while (!stop.signal.aborted) {
      const body = {
        model: "weir-tiny",
        messages: [{ role: "user", content: "Tell me a tale." }],
        max_tokens: 60,
        seed,
      };
      const response = await fetch(`${address}/v1/chat/completions`, {
        method: "POST",
        body: JSON.stringify(body),
        headers: { "Content-Type": "application/json" },
      });
      assert.equal(response.status, 200, await response.text());
    }
  });
  try {
    const drawn = (title) =>
      page.waitForFunction((wanted) => {
        const figure = [...document.querySelectorAll("figure")].find(
          (one) => one.querySelector("h2").textContent === wanted,
        );
        return (
          [...figure.querySelectorAll("b")].some(
            (value) => Number.parseFloat(value.textContent) > 0,
          ) &&
          [...figure.querySelectorAll(".plot .series")].some((line) =>
            line.getAttribute("d").includes("L"),
          )
        );
      }, title);
    for (const title of [
      "Tokens a second",
      "Requests",
      "Time to first token",
      "Between two tokens",
      "Sequences in a step",
      "Tokens in a step",
      "Step time by phase",
      "Slots",
      "Pages",
      "Bytes in use",
      "Queue",
      "HTTP answers a second",
      "HTTP connections",
      "First token over HTTP",
      "Process",
      "Resident memory",
    ]) {
      await drawn(title).catch((error) => assert.fail(`${title}: ${error.message}`));
    }
  } finally {
    stop.abort();
    await Promise.all(load);
  }
  await close();
});
