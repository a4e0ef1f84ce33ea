// Chromium under test: found, started, and watched for what must never happen.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

// What run_node.sh found. playwright-core lies beside the build, not beside these files.
const { chromium } = createRequire(`${process.env.WEIR_NODE_MODULES}/`)("playwright-core");

export async function launch() {
  return chromium.launch({
    executablePath: process.env.WEIR_CHROMIUM,
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
  });
}

// After each test: what a failed one left open.
export async function closeRest(browser) {
  await Promise.all(browser.contexts().map((context) => context.close()));
}

// A page at `address` in a context of its own. `alarms` gathers errors of the console, refusals of
// the Content-Security-Policy, uncaught exceptions and requests to anywhere else.
export async function openPage(browser, address, options = {}) {
  const context = await browser.newContext({
    viewport: { width: 1200, height: 800 },
    acceptDownloads: true,
    ...options,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const alarms = [];
  page.on("console", (message) => {
    if (message.type() !== "error") return;
    // A status that is no success is in the console by itself.
    if (
      /Failed to load resource: the server responded with a status|net::ERR_(INCOMPLETE_CHUNKED|CONNECTION)/.test(
        message.text(),
      )
    )
      return;
    alarms.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => alarms.push(`exception: ${error.message}`));
  page.on("request", (request) => {
    if (
      !/^(data|blob):/.test(request.url()) &&
      !request.url().startsWith(new URL(address).origin + "/")
    )
      alarms.push(`request to ${request.url()}`);
  });
  await page.addInitScript(() => {
    window.refusals = [];
    document.addEventListener("securitypolicyviolation", (event) =>
      window.refusals.push(`${event.violatedDirective}: ${event.blockedURI}`),
    );
  });
  await page.goto(address);
  return {
    page,
    close: async () => {
      const refusals = await page.evaluate(() => window.refusals);
      await context.close();
      assert.deepEqual([...alarms, ...refusals], []);
    },
  };
}

// Sends by the keyboard and waits for the end of the answer.
export async function send(page, text) {
  await page.locator("#prompt").fill(text);
  await page.locator("#prompt").press("Enter");
  await answered(page);
}

export const answered = (page) =>
  page.waitForFunction(() => document.getElementById("stop").hidden);

// Nothing may stick out at the side.
export async function expectNoSideways(page) {
  const [width, seen] = await page.evaluate(() => [
    document.documentElement.scrollWidth,
    window.innerWidth,
  ]);
  assert.ok(width <= seen, `${width} px wide in a window of ${seen}`);
  const out = await page.evaluate(() =>
    [...document.querySelectorAll("body *")]
      .filter(
        (node) => node.checkVisibility() && !node.closest(".off-screen, .skip, pre, .table-scroll"),
      )
      .filter((node) => node.getBoundingClientRect().right > window.innerWidth + 1)
      .map((node) => `${node.tagName}.${node.className.baseVal ?? node.className}`),
  );
  assert.deepEqual(out, []);
}
