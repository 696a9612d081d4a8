// A workbench page as a person uses it: palette, side bar, webviews.

export class Workbench {
  /** @param {import('playwright-core').Page} page */
  constructor(page) {
    this.page = page;
    this.status = page.locator('.statusbar-item[id="longsight.longsight.longsight.status"]');
  }

  async open(url, folder) {
    await this.page.goto(
      folder === undefined ? `${url}?ew=true` : `${url}?folder=${encodeURIComponent(folder)}`,
    );
    await this.page.waitForSelector('.monaco-workbench', { timeout: 60_000 });
    // Contributions are there when the activity bar shows the extension's container.
    await this.page.locator('.activitybar a.action-label[aria-label^="Longsight"]').waitFor();
  }

  /** Runs a command by its title in the palette. */
  async palette(title) {
    const input = this.page.locator('.quick-input-widget input[type="text"]');
    // A key sent before the keybinding service is up is lost.
    for (let tries = 0; tries < 10 && !(await input.isVisible()); tries++) {
      await this.page.keyboard.press('F1');
      await input.waitFor({ state: 'visible', timeout: 1500 }).catch(() => {});
    }
    await input.fill(`>${title}`);
    await this.page
      .locator('.quick-input-list .monaco-list-row', { hasText: title })
      .first()
      .waitFor();
    await this.page.keyboard.press('Enter');
  }

  /** Types into the input box that a command opened. */
  async answerInput(text) {
    const input = this.page.locator('.quick-input-widget input[type="text"]');
    await this.page
      .locator('.quick-input-widget .quick-input-message')
      .filter({ hasText: 'whole workspace' })
      .waitFor();
    await input.fill(text);
    await this.page.keyboard.press('Enter');
    await this.page.locator('.quick-input-widget').waitFor({ state: 'hidden' });
  }

  /** The document of the webview that contains `selector`, whatever the order of creation was. */
  async webview(selector, timeoutMs = 30_000) {
    const deadline = Date.now() + timeoutMs;
    while (Date.now() < deadline) {
      for (const frame of this.page.frames()) {
        if (
          await frame
            .locator(selector)
            .count()
            .catch(() => 0)
        )
          return frame;
      }
      await this.page.waitForTimeout(100);
    }
    throw new Error(`No webview shows ${selector} after ${timeoutMs} ms.`);
  }

  chat() {
    return this.webview('.composer');
  }

  stats() {
    return this.webview('section[aria-label="Time to first token"]');
  }
}
