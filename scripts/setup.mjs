// Makes a fresh clone ready to build: checks the machine, installs the npm packages, fetches the
// llama.cpp headers. Quick when there is nothing to do. Needs nothing but Node.
import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { inRoot, root } from './lib/paths.mjs';
import { main, output, Problem, step } from './lib/terminal.mjs';

const oldestNode = 20;
const oldestGlibc = '2.34';
const oldestCmake = '3.22';
const oldestGcc = '11';

// The prebuilt ggml and libllama come without headers. node-llama-cpp of the same version carries
// the sources as a git bundle; it is not a dependency, because installing it would bring 85 packages.
const llama = {
  version: '3.21.1',
  integrity:
    'sha512-E3N0Ev2Va0wzydvXYFwM9Hvyo07PoWjt8T/9GMc43Cvt8YkV/NU/tYUgEMC1grTPv2o9PRjQi0G3Wb5P/awiMg==',
  commit: '80fb11ac73e66d89eae2c6a91d8a77428fa733ed',
};

export async function setup() {
  checkMachine();
  await installPackages();
  await fetchHeaders();
}

/** Throws a Problem that names everything that is missing at once. */
function checkMachine() {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new Problem(
      `Longsight builds on Linux x64; this is ${process.platform} ${process.arch}.`,
      'Use a Linux x64 machine, WSL or a container.',
    );
  }
  const node = process.versions.node;
  if (Number(node.split('.')[0]) < oldestNode) {
    throw new Problem(
      `Node ${oldestNode} or newer is needed; this is Node ${node}.`,
      'Install a newer one: https://nodejs.org, or `nvm install 20`.',
    );
  }
  const glibc = glibcVersion();
  if (!glibc || older(glibc, oldestGlibc)) {
    throw new Problem(
      `glibc ${oldestGlibc} or newer is needed; this system has ${glibc ?? 'another C library'}.`,
      'Use a newer system, e.g. Ubuntu 22.04, Debian 12 or RHEL 9, or a container of one.',
    );
  }
  const missing = [
    need('git', 'git', output('git', ['--version'])),
    need('g++', 'g++', output(process.env.CXX || 'g++', ['-dumpfullversion']), oldestGcc),
    need('cmake', 'cmake', output('cmake', ['--version'])?.match(/[\d.]+/)?.[0], oldestCmake),
    need('make', 'make or ninja', output('ninja', ['--version']) ?? output('make', ['--version'])),
  ].filter(Boolean);
  if (missing.length > 0) {
    throw new Problem(
      `Needed to build, and not there: ${missing.map((each) => each.what).join('; ')}.`,
      `On Debian and Ubuntu: sudo apt-get install -y ${missing.map((each) => each.apt).join(' ')}`,
    );
  }
}

function need(apt, name, version, oldest) {
  if (version === undefined) return { apt, what: name };
  if (oldest && older(version, oldest)) {
    return { apt, what: `${name} ${oldest} or newer (this is ${version})` };
  }
  return undefined;
}

function glibcVersion() {
  // Without this the report looks up the name of every network interface.
  process.report.excludeNetwork = true;
  return process.report.getReport().header.glibcVersionRuntime;
}

function older(version, than) {
  const [a, b] = [version, than].map((text) => text.split('.').map(Number));
  return a[0] !== b[0] ? a[0] < b[0] : (a[1] ?? 0) < (b[1] ?? 0);
}

async function installPackages() {
  const stamp = inRoot('node_modules/.longsight-setup');
  const wanted = createHash('sha256')
    .update(readFileSync(inRoot('package-lock.json')))
    .digest('hex');
  if (read(stamp) === wanted) return;
  await step('Installing npm packages', 'npm', ['ci'], { cwd: root });
  writeFileSync(stamp, wanted);
}

async function fetchHeaders() {
  const target = inRoot('.deps/llama');
  const stamp = path.join(target, 'VERSION');
  const wanted = `node-llama-cpp ${llama.version}, llama.cpp ${llama.commit}\n`;
  if (read(stamp) === wanted) return;

  const pinned = JSON.parse(readFileSync(inRoot('package.json'), 'utf8')).devDependencies;
  if (pinned['@node-llama-cpp/linux-x64'] !== llama.version) {
    throw new Problem(
      `The libraries are ${pinned['@node-llama-cpp/linux-x64']}, the headers ${llama.version}.`,
      'Set the same version in package.json and in scripts/setup.mjs.',
    );
  }
  const work = inRoot('.deps', `llama.${process.pid}`);
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work, { recursive: true });
  try {
    const archive = path.join(work, `node-llama-cpp-${llama.version}.tgz`);
    await step(
      'Downloading the llama.cpp headers (35 MB)',
      'npm',
      ['pack', `node-llama-cpp@${llama.version}`, '--pack-destination', work, '--silent'],
      { cwd: root },
    );
    const found = `sha512-${createHash('sha512').update(readFileSync(archive)).digest('base64')}`;
    if (found !== llama.integrity) {
      throw new Problem(
        `node-llama-cpp ${llama.version} has another content than expected (${found}).`,
        'Check the registry that npm uses: `npm config get registry`.',
      );
    }
    const bundle = 'package/llama/gitRelease.bundle';
    const clone = path.join(work, 'llama.cpp');
    // A hook of another repository may have set GIT_DIR and the like.
    const env = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => !name.startsWith('GIT_')),
    );
    await step(
      'Unpacking the llama.cpp headers',
      'sh',
      [
        '-ec',
        'tar -xzf "$1" -C "$2" "$3"; git clone --quiet --no-checkout "$2/$3" "$4"; ' +
          'git -C "$4" -c advice.detachedHead=false checkout --quiet "$5" -- include ggml/include LICENSE',
        'sh',
        archive,
        work,
        bundle,
        clone,
        llama.commit,
      ],
      { env },
    );
    const ready = path.join(work, 'ready');
    for (const part of ['include', 'ggml/include', 'LICENSE']) {
      cpSync(path.join(clone, part), path.join(ready, part), { recursive: true });
    }
    writeFileSync(path.join(ready, 'VERSION'), wanted);
    rmSync(target, { recursive: true, force: true });
    renameSync(ready, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function read(file) {
  return existsSync(file) ? readFileSync(file, 'utf8') : undefined;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main(setup);
