// Milliseconds until Chromium has loaded a page, five times: NODE_PATH=.../node_modules node report_page.mjs PAGE
import { createRequire } from "node:module";
import { resolve } from "node:path";

const { chromium } = await import(createRequire(`${process.env.NODE_PATH}/x.js`).resolve("playwright-core"))
  .then((found) => found.default ?? found);
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
for (let k = 0; k < 5; k++) {
  const page = await browser.newPage({ viewport: { width: 1400, height: 900 } }), started = performance.now();
  await page.goto(`file://${resolve(process.argv[2])}`, { waitUntil: "load" });
  const loaded = performance.now() - started;
  await page.locator("figure.chart").first().scrollIntoViewIfNeeded();
  await page.locator("figure.chart .main-svg").first().waitFor();
  console.log(`loaded after ${Math.round(loaded)} ms, first chart after ${Math.round(performance.now() - started)} ms`);
  await page.close();
}
await browser.close();
