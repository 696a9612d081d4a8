// The CUDA kernels: compiled for every architecture, held to their registers, run where a GPU is.
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { inRoot } from '../lib/paths.mjs';
import { output, Problem, runHere, say, step } from '../lib/terminal.mjs';
import { installCudaCompiler } from './pythonPackages.mjs';

const folder = inRoot('build/cuda');
const buildLog = path.join(folder, 'build.txt');

/** @returns {Promise<{ passed: number, failed: number, skipped: number }>} */
export async function testCudaKernels() {
  await installCudaCompiler();
  await build();
  const counts = { passed: 1, failed: 0, skipped: 0 };
  const take = (status) => counts[status === 0 ? 'passed' : 'failed']++;
  take(await runHere('python3', [inRoot('test/kernels/cuda/check_resources.py'), buildLog]));
  if (output('nvidia-smi', ['--query-gpu=name', '--format=csv,noheader']) === undefined) {
    say('No NVIDIA GPU here: the CUDA kernels were compiled and not run.');
    counts.skipped++;
  } else {
    take(await runHere(path.join(folder, 'test_cuda_kernels'), []));
  }
  return counts;
}

/** From nothing when a source has changed: the compiler reports resources only as it compiles. */
async function build() {
  const stamp = path.join(folder, 'sources');
  const sources = hashOf(['kernels', 'native/attention', 'test/kernels/cuda']);
  if (fs.existsSync(stamp) && fs.readFileSync(stamp, 'utf8') === sources) return;
  fs.rmSync(folder, { recursive: true, force: true });
  const ninja = output('ninja', ['--version']) === undefined ? [] : ['-G', 'Ninja'];
  await step('Configuring the CUDA kernels', 'cmake', [
    ...['-S', inRoot('kernels/cuda'), '-B', folder],
    ...ninja,
  ]);
  const log = await step('Building the CUDA kernels', 'cmake', ['--build', folder, '--parallel']);
  if (!fs.existsSync(path.join(folder, 'test_cuda_kernels'))) {
    throw new Problem('The build of the CUDA kernels made no test_cuda_kernels.');
  }
  fs.writeFileSync(buildLog, log);
  fs.writeFileSync(stamp, sources);
}

function hashOf(folders) {
  const hash = createHash('sha256').update(fs.readFileSync(inRoot('cuda-requirements.txt')));
  for (const name of folders) {
    for (const file of fs.readdirSync(inRoot(name), { recursive: true }).sort()) {
      const absolute = inRoot(name, file);
      if (fs.statSync(absolute).isFile())
        hash.update(`${file}\n`).update(fs.readFileSync(absolute));
    }
  }
  return hash.digest('hex');
}
