// Use the web client as a person does: pick a folder, click, read; take a picture.
//
//     node click.mjs ADDRESS DIR CHROMIUM PROFILE PICTURE TEXT
//
// Prints one line of JSON: what the page says, and what went wrong in it.

import { chromium } from "playwright-core";

const [address, folder, executablePath, profile, picture, text] = process.argv.slice(2);
const flags = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const context = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: flags });
try {
  const page = context.pages()[0] ?? (await context.newPage());
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("requestfailed", (request) => errors.push(`${request.url()} failed`));
  await page.goto(address);
  const read = async (id) => {
    await page.waitForFunction((name) => document.getElementById(name).dataset.state, id, { timeout: 90000 });
    const found = page.locator(`#${id}`);
    return { state: await found.getAttribute("data-state"), text: await found.textContent() };
  };
  await page.locator("#folder").setInputFiles(folder);
  const found = { model: await read("model") };
  if (found.model.state === "done") {
    await page.locator("#text").fill(text);
    await page.locator("#run").click();
    found.result = await read("result");
    await page.locator("#check").click();
    found.golden = await read("golden");
  }
  await page.screenshot({ path: picture, fullPage: true });
  console.log(JSON.stringify({ ...found, errors }));
} finally {
  await context.close();
}
