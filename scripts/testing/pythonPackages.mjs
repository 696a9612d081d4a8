// Python packages that tests and compilers come from, in folders of the repository.
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { inRoot } from '../lib/paths.mjs';
import { output, Problem, step } from '../lib/terminal.mjs';

/** What tests compare with, and what writes small models for them, in .deps/python. */
export const installOracles = () =>
  install('test/requirements.txt', '.deps/python', 'Installing Python packages (85 MB)');

/** The CUDA compiler, in .deps/cuda. */
export const installCudaCompiler = () =>
  install('cuda-requirements.txt', '.deps/cuda', 'Installing the CUDA compiler (110 MB)');

/** Installs a requirements file into a folder, whole or not at all, when it is not there yet. */
async function install(requirementsName, targetName, title) {
  const requirements = inRoot(requirementsName);
  const target = inRoot(targetName);
  const version = output('python3', ['--version']);
  if (output('python3', ['-m', 'pip', '--version']) === undefined) {
    throw new Problem(
      `Python 3 with pip is needed for ${requirementsName}.`,
      'On Debian and Ubuntu: sudo apt-get install -y python3-pip',
    );
  }
  const stamp = path.join(target, 'installed');
  const wanted = createHash('sha256')
    .update(`${version}\n${fs.readFileSync(requirements)}`)
    .digest('hex');
  if (fs.existsSync(stamp) && fs.readFileSync(stamp, 'utf8') === wanted) return;
  const part = `${target}.${process.pid}`;
  try {
    // prettier-ignore
    await step(title, 'python3', [
      '-m', 'pip', 'install', '--quiet', '--no-deps', '--only-binary', ':all:', '--root-user-action', 'ignore',
      '--disable-pip-version-check', '--target', part, '--requirement', requirements,
    ]);
    fs.writeFileSync(path.join(part, 'installed'), wanted);
    fs.rmSync(target, { recursive: true, force: true });
    fs.renameSync(part, target);
  } finally {
    fs.rmSync(part, { recursive: true, force: true });
  }
}
