// Check the page of `flowward watch` in Chromium: watch.mjs CHROMIUM PYTHON RUNS. A copy of the runs is watched while runs
// come, go on and go away. One line per fault; exit code 1 if there is one.
import { spawn } from "node:child_process";
import { appendFile, cp, mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const { chromium } = await import(createRequire(`${process.env.NODE_PATH}/x.js`).resolve("playwright-core"))
  .then((found) => found.default ?? found);
const axe = await readFile(`${process.env.NODE_PATH}/axe-core/axe.min.js`, "utf8");
const [program, python, source] = process.argv.slice(2), faults = [];
const must = (holds, said) => holds || faults.push(said);
const work = await mkdtemp(join(tmpdir(), "watch-")), runs = join(work, "runs");
await mkdir(runs);

const server = spawn(python, ["-m", "flowward", "watch", runs, "--port", "0"], { stdio: ["ignore", "pipe", "inherit"] });
process.on("exit", () => server.kill());
const address = await new Promise((done) => server.stdout.once("data", (said) => done(/http:\S+/.exec(said)[0])));
const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox"] });

async function opened(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 }, ...options });
  const page = await context.newPage();
  page.on("pageerror", (error) => faults.push(`watch: ${error.message}`));
  page.on("console", (said) => said.type() === "error" && !/ERR_|Failed to load/.test(said.text()) && faults.push(`watch: ${said.text()}`));
  page.on("dialog", (dialog) => { faults.push("watch: a name or a prompt was run as code"); dialog.dismiss(); });
  page.on("request", (request) => request.url().startsWith(address) || /^(data|blob):/.test(request.url()) || faults.push(`watch: asks for ${request.url()}`));
  await page.goto(address);
  return page;
}
const line = (k) => `${JSON.stringify({ iteration: k, images: 64 * k, reward: 0.5, health: [], seconds: { total: 3 } })}\n`;

// Followed without a reload.
const page = await opened(), row = page.locator("#rows tr");
const shown = (words) => row.filter({ hasText: words }).first().waitFor({ timeout: 10000 }).catch(() => faults.push(`watch: no row says ${words}`));
await page.locator("#empty:has-text('There are no runs')").waitFor();
await cp(join(source, "new"), join(runs, "new"), { recursive: true });
await shown("40");
const slider = page.locator("#moments input"), before = +await slider.getAttribute("max");
await page.locator("#samples").scrollIntoViewIfNeeded();
await page.locator("#pictures img").first().waitFor();
await page.locator("#charts-reward").scrollIntoViewIfNeeded();
await page.locator("#charts-reward .main-svg").first().waitFor({ timeout: 20000 });
const points = () => page.evaluate(() => document.querySelector("#charts-reward .plot").data.at(-1).x.length);
const drawn = await points();
await appendFile(join(runs, "new", "metrics.jsonl"), line(41) + line(42).slice(0, 20));
await shown("41");
await page.waitForTimeout(1500);
must(await points() === drawn + 1, "watch: a new line is no new point");
await appendFile(join(runs, "new", "metrics.jsonl"), line(42).slice(20));
await shown("42");
await cp(join(runs, "new", "samples", "000040.json"), join(runs, "new", "samples", "000042.json"));
await page.locator(`#moments input[max="${before + 1}"]`).waitFor({ timeout: 10000 }).catch(() => faults.push("watch: the slider does not grow"));
must(/42/.test(await page.locator("#moments output").textContent()), "watch: the slider does not follow");
await cp(source, runs, { recursive: true });
await shown("<img src=x onerror=alert(1)>");
await row.nth(3).waitFor({ timeout: 10000 }).catch(() => {});  // they need not all come at once
must(await row.count() === 4, `watch: ${await row.count()} rows for 4 runs`);
await page.locator("#rows input").first().focus();
await page.keyboard.press("Space");
must(await page.locator("#rows input").first().evaluate((box) => box === document.activeElement), "watch: the focus is lost");
await rm(join(runs, "older"), { recursive: true });
await shown("deleted");

// A run over episodes beside those over images.
const noun = () => page.locator("#noun").textContent();
must(await noun() === "images", `watch: runs over images train on ${await noun()}`);
await cp(join(source, "..", "agents", "agent"), join(runs, "agent"), { recursive: true });
await shown("agentflow");
await row.filter({ hasText: "agentflow" }).locator("input").check();
await page.locator("#noun:has-text('episodes or images')").waitFor({ timeout: 10000 }).catch(() => faults.push("watch: no word about episodes"));
must(/measured episodes or the initial noise/.test(await page.locator("#intervals").textContent()), "watch: nothing is said about intervals over episodes");
await page.locator("[data-choose=none]").click();
await row.filter({ hasText: "agentflow" }).locator("input").check();
await page.locator("#samples").waitFor({ state: "hidden", timeout: 10000 }).catch(() => faults.push("watch: episodes have a section of pictures"));
must(await noun() === "episodes", `watch: a run over episodes trains on ${await noun()}`);

// Accessible, and no wider than the screen.
for (const width of [1400, 390]) for (const colorScheme of ["light", "dark"]) {
  const other = await opened({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true }), where = `watch (${width} px, ${colorScheme})`;
  await other.locator("#rows tr").first().waitFor();
  await other.evaluate(() => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
  await other.locator("#settings").scrollIntoViewIfNeeded();
  await other.locator("#pictures img").first().waitFor();
  await other.waitForTimeout(500);
  const found = await other.evaluate(async (code) => { (0, eval)(code); return axe.run(document, { resultTypes: ["violations"] }); }, axe);
  for (const each of found.violations.filter((each) => each.impact !== "minor"))
    faults.push(`${where}: axe ${each.impact} ${each.id}, ${each.nodes.length} times: ${each.nodes[0].html.slice(0, 160)} ${each.nodes[0].failureSummary.replace(/\s+/g, " ").slice(0, 200)}`);
  const wide = await other.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  must(wide <= 0, `${where}: ${wide} px wider than the screen`);
  await other.context().close();
}

server.kill();
await page.locator("#state:has-text('Not connected')").waitFor({ timeout: 10000 }).catch(() => faults.push("watch: the page does not say that the server has ended"));
await browser.close();
await rm(work, { recursive: true });
faults.forEach((fault) => console.log(`ci: ${fault}`));
console.log(`ci: flowward watch in a browser, ${faults.length} faults`);
process.exit(faults.length ? 1 : 0);
