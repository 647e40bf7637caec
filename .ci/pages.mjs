// Check pages in Chromium: pages.mjs CHROMIUM PAGE... What axe-core finds above "minor", in light and dark, wide and
// narrow; that the page needs no network, reports no error and is not wider than the screen; and that pictures, sliders,
// charts and the table of metrics can be used. One line per fault; exit code 1 if there is one.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const { chromium } = await import(createRequire(`${process.env.NODE_PATH}/x.js`).resolve("playwright-core"))
  .then((found) => found.default ?? found);
const axe = await readFile(`${process.env.NODE_PATH}/axe-core/axe.min.js`, "utf8");
const [program, ...files] = process.argv.slice(2);
const faults = [];
const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox"] });

async function opened(file, width, colorScheme) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
  const page = await context.newPage(), where = `${file} (${width} px, ${colorScheme})`;
  page.on("pageerror", (error) => faults.push(`${where}: ${error.message}`));
  page.on("request", (request) => /^(file|data|blob):/.test(request.url()) || faults.push(`${where}: asks for ${request.url()}`));
  await page.goto(`file://${resolve(file)}`);
  return [page, where];
}

// All charts are drawn when they come into view.
async function unfolded(page) {
  await page.evaluate(async () => {
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    for (let y = 0; y < document.documentElement.scrollHeight; y += 500) {
      scrollTo(0, y);
      await new Promise((done) => setTimeout(done, 30));
    }
    scrollTo(0, 0);
  });
}

async function accessible(page, where) {
  const found = await page.evaluate(async (code) => { (0, eval)(code); return axe.run(document, { resultTypes: ["violations"] }); }, axe);
  for (const each of found.violations.filter((each) => each.impact !== "minor"))
    faults.push(`${where}: axe ${each.impact} ${each.id}, ${each.nodes.length} times: ${each.nodes[0].html.slice(0, 160)} ${each.nodes[0].failureSummary.replace(/\s+/g, " ").slice(0, 200)}`);
}

const must = (holds, said) => holds || faults.push(said);

async function pictures(page, where) {
  const zoom = page.locator("button.zoom");
  if (!await zoom.count()) return;
  await zoom.first().focus();
  await page.keyboard.press("Enter");
  const shown = page.locator("dialog.enlarged img"), first = await shown.getAttribute("src");
  must(await page.locator("dialog.enlarged").evaluate((dialog) => dialog.open), `${where}: Enter enlarges no picture`);
  await accessible(page, `${where}, enlarged`);
  if (await zoom.count() > 1) {
    await page.keyboard.press("ArrowRight");
    must(await shown.getAttribute("src") !== first, `${where}: the arrow key shows no other picture`);
    await page.keyboard.press("ArrowLeft");
    must(await shown.getAttribute("src") === first, `${where}: the arrow key does not go back`);
  }
  await page.keyboard.press("Escape");
  must(!await page.locator("dialog.enlarged").evaluate((dialog) => dialog.open), `${where}: Escape does not close`);
  must(await zoom.first().evaluate((button) => button === document.activeElement), `${where}: the focus is lost`);
}

async function sliders(page, where) {
  const slider = page.locator(".slider input").first();
  if (!await slider.count() || !await slider.isVisible()) return;
  const later = page.locator("img[data-later]").first(), seen = new Set();
  await slider.focus();
  for (let k = 0; k <= +await slider.getAttribute("max"); k++) {
    seen.add(await later.getAttribute("src"));
    await page.keyboard.press("ArrowLeft");
    await page.waitForTimeout(50);
  }
  must(seen.size === 1 + +await slider.getAttribute("max"), `${where}: the slider shows ${seen.size} pictures`);
  must(/^(After|Before) /.test(await page.locator(".slider output").first().textContent()), `${where}: the slider says no iteration`);
}

async function charts(page, where) {
  const every = await page.locator("figure.chart").count(), drawn = await page.locator("figure.chart .main-svg").count();
  must(drawn >= every, `${where}: ${drawn} parts of ${every} charts are drawn`);
  if (!await page.locator("[data-save]").count() || !every) return;
  const chart = page.locator("figure.chart .plot").first(), before = await chart.innerHTML();
  await page.locator("select[data-option=x]").first().selectOption("seconds").catch(() => {});
  must(await chart.innerHTML() !== before || await page.locator("select").count() === 0, `${where}: the x axis does not change`);
  const waits = page.waitForEvent("download");
  await page.locator("[data-save]").first().click();
  const table = await readFile(await (await waits).path(), "utf8"), rows = table.trim().split("\n");
  must(/^(run,)?iteration,(images|episodes|episodes or images),seconds,/.test(rows[0]) && rows.length > 2, `${where}: metrics.csv begins with ${rows[0]}`);
}

for (const file of files) {
  for (const width of [1400, 390]) for (const scheme of ["light", "dark"]) {
    const [page, where] = await opened(file, width, scheme);
    await unfolded(page);
    await accessible(page, where);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    must(wide <= 0, `${where}: ${wide} px wider than the screen`);
    if (width === 1400 && scheme === "light") {
      await charts(page, where);
      await sliders(page, where);
      await pictures(page, where);
    }
    await page.context().close();
  }
}
await browser.close();
faults.forEach((fault) => console.log(`ci: ${fault}`));
console.log(`ci: ${files.length} pages in a browser, ${faults.length} faults`);
process.exit(faults.length ? 1 : 0);
