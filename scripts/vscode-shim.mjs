#!/usr/bin/env node
// Stands in for a `code` executable: @vscode/test-electron starts it as it would start a desktop VS
// Code, and it runs the tests inside the extension host of code-server, with a Chromium page as window.
//   LONGSIGHT_SHIM_SETTINGS  user settings as JSON
//   LONGSIGHT_SHIM_VERBOSE   also the log of the server and of the extension host
import fs from 'node:fs';
import path from 'node:path';
import { format } from 'node:util';
import { inRoot } from './lib/paths.mjs';
import { openBrowser, repositoryFilesInUse, startCodeServer } from './code-server.mjs';

const timeoutMs = 480_000;
const verbose = Boolean(process.env.LONGSIGHT_SHIM_VERBOSE);
// What the workbench itself says on the same channel.
const noise =
  /^(Resolv(ing|ed) connection token|Creating a socket|\[reconnection-grace-time\]|Ignoring fetching additional|Updating additional builtin|\[Service Worker\]|\[AgentHost|\[AccountPolicyGate\]|\[ChatModelSelection\]|Error while fetching the extension under development)/;

const values = (name) =>
  process.argv
    .filter((each) => each.startsWith(`--${name}=`))
    .map((each) => each.slice(name.length + 3));
const extensions = values('extensionDevelopmentPath');
const [tests] = values('extensionTestsPath');
const folder = process.argv.slice(2).find((each) => !each.startsWith('-'));
if (extensions.length === 0 || !tests) {
  console.error('usage: [folder] --extensionDevelopmentPath=DIR --extensionTestsPath=FILE');
  process.exit(2);
}

const passedOn = /^(LONGSIGHT_|MOCHA_|VSCODE_TEST_|XDG_DATA_HOME$|HOME$)/;
const server = await startCodeServer({
  env: Object.fromEntries(Object.entries(process.env).filter(([name]) => passedOn.test(name))),
  settings: JSON.parse(process.env.LONGSIGHT_SHIM_SETTINGS ?? '{}'),
  verbose,
});
const browser = await openBrowser();
let timer;
let watch;
let status = 1;
try {
  status = await runTests();
} catch (error) {
  console.error(error.message);
} finally {
  clearTimeout(timer);
  clearInterval(watch);
  await browser.close();
  await server.stop();
}
process.exit(status);

async function runTests() {
  const verdictFile = path.join(server.root, 'verdict');
  const used = new Set();
  const look = () => repositoryFilesInUse(server.pid).forEach((file) => used.add(file));
  watch = setInterval(look, 500);
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
  const page = await context.newPage();
  const ended = new Promise((resolve, reject) => {
    // The workbench calls these two: the console and the exit of the extension host under test.
    void page.exposeFunction('codeAutomationLog', (type, args) => {
      const line = format(...[args].flat());
      if (!verbose && noise.test(line)) return;
      (type === 'error' ? process.stderr : process.stdout).write(`${line}\n`);
    });
    void page.exposeFunction('codeAutomationExit', resolve);
    page.on('crash', () => reject(new Error('The page of the workbench crashed.')));
    timer = setTimeout(
      () => reject(new Error(`The tests did not end within ${timeoutMs / 1000} s.`)),
      timeoutMs,
    );
  });
  await page.addInitScript(startDevelopment, {
    extensions: extensions.map(remoteUri),
    extensionTestsPath: remoteUri(writeWrapper(verdictFile)),
  });
  await page.goto(
    server.url + (folder ? `?folder=${encodeURIComponent(path.resolve(folder))}` : '?ew=true'),
  );
  const code = await ended.catch(async (error) => {
    fs.mkdirSync(inRoot('test-results'), { recursive: true });
    await page
      .screenshot({ path: inRoot('test-results/vscode-failed.png') })
      .catch(() => undefined);
    throw error;
  });
  if (used.size > 0)
    throw new Error(`Files of the repository were in use: ${[...used].join(', ')}`);
  if (!fs.existsSync(verdictFile)) {
    throw new Error('The extension host died before the tests ended.');
  }
  return code === 0 && fs.readFileSync(verdictFile, 'utf8') === 'passed' ? 0 : 1;
}

/** When the extension host dies, the exit arrives as 0: only a file written at the end counts. */
function writeWrapper(verdictFile) {
  const file = path.join(server.root, 'tests.cjs');
  fs.writeFileSync(
    file,
    `const { run } = require(${JSON.stringify(path.resolve(tests))});
const end = (text) => require('node:fs').writeFileSync(${JSON.stringify(verdictFile)}, text);
exports.run = async () => {
  try {
    await run();
    end('passed');
  } catch (error) {
    end('failed');
    throw error;
  }
};
`,
  );
  return file;
}

function remoteUri(file) {
  return {
    $mid: 1,
    scheme: 'vscode-remote',
    authority: server.authority,
    path: path.resolve(file),
  };
}

/**
 * Runs in the page before the workbench reads its configuration: what @vscode/test-web sets. The
 * server's own switch for it (enable-smoke-test-driver) would hide toasts and skip dialogs.
 */
function startDevelopment(options) {
  if (window !== window.top) return;
  new MutationObserver((_, observer) => {
    const tag = document.getElementById('vscode-workbench-web-configuration');
    if (!tag) return;
    observer.disconnect();
    const settings = JSON.parse(tag.dataset.settings);
    settings.developmentOptions = { ...settings.developmentOptions, ...options };
    tag.dataset.settings = JSON.stringify(settings);
  }).observe(document, { childList: true, subtree: true });
}
