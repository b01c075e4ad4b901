// Open a report as a reader would and use it; print errors and observations as one line of JSON.
// node browser.js <playwright-core> <chromium> <page.html> <width> <light|dark> <screenshot.png>
"use strict";
const [, , library, executablePath, file, width, colorScheme, screenshot] = process.argv;
const { chromium } = require(library);
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

async function list(page) {
  const browse = page.locator(".browse").first();
  const state = async () => ({
    shown: await browse.locator(".card:not([hidden])").count(),
    count: await browse.locator("output").textContent(),
    first: await browse.locator(".card:not([hidden])").first().textContent({ timeout: 1000 }).catch(() => ""),
  });
  const steps = { start: await state() };
  await browse.locator("button.more").click();
  steps.more = await state();
  await browse.getByLabel("Search").fill("test.jsonl:1");
  steps.search = await state();
  await browse.getByLabel("Search").fill("no such words");
  steps.nothing = await state();
  await browse.getByLabel("Search").fill("");
  await browse.getByLabel("Change").selectOption("worse");
  steps.change = await state();
  await browse.getByLabel("Label").selectOption("neutral");
  steps.label = await state();
  return steps;
}

async function states(page) {
  const every = page.locator(".browse").last();
  await every.locator("summary").first().click();
  await every.getByLabel("Show").selectOption("wrong");
  await every.getByLabel("Run").selectOption("B");
  return every.locator(".card:not([hidden])").evaluateAll((cards) => cards.map((card) => [card.dataset.state, card.dataset.run]));
}

async function sorted(page) {
  const table = page.locator("table.sortable").first();
  await table.getByRole("button", { name: "support" }).click();
  return table.locator("tbody tr td:last-child").allTextContents();
}

(async () => {
  const browser = await chromium.launch({ executablePath, args });
  const context = await browser.newContext({ viewport: { width: Number(width), height: 900 }, colorScheme });
  const page = await context.newPage();
  const errors = [];
  page.on("console", (message) => errors.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => errors.push(`page: ${error.message}`));
  page.on("request", (request) => {
    if (!/^(file|data):/.test(request.url())) errors.push(`request: ${request.url()}`);
  });
  await page.goto(`file://${file}`);
  const observed = { list: await list(page), states: await states(page), sorted: await sorted(page) };
  observed.overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  observed.paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  observed.line = await page.evaluate(() => getComputedStyle(document.querySelector("svg path[clip-path]")).stroke);
  await page.screenshot({ path: screenshot, fullPage: true });
  await page.emulateMedia({ media: "print" });
  observed.tools = await page.locator(".tools:visible").count();
  await browser.close();
  process.stdout.write(`${JSON.stringify({ errors, observed })}\n`);
})();
