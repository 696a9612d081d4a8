// The CUDA engine and its kernels: compiled for every architecture, held to their registers, opened
// here, run where a GPU is.
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { copyLibraries } from '../build.mjs';
import {
  configureCuda,
  cudaJobs,
  cudaLibrary,
  placeCudaLibrary,
  wholeCudaFolder as folder,
} from '../cuda.mjs';
import { inRoot } from '../lib/paths.mjs';
import { output, Problem, runHere, say, step } from '../lib/terminal.mjs';

const buildLog = path.join(folder, 'build.txt');
const entry = 'longsightCudaApi';

/** @returns {Promise<{ passed: number, failed: number, skipped: number }>} */
export async function testCudaKernels() {
  await build();
  placeCudaLibrary(folder);
  copyLibraries();
  const counts = { passed: 1, failed: 0, skipped: 0 };
  const take = (status) => counts[status === 0 ? 'passed' : 'failed']++;
  take(await runHere('python3', [inRoot('test/kernels/cuda/check_resources.py'), buildLog]));
  take(exportsOneFunction() ? 0 : 1);
  const gpu = output('nvidia-smi', ['--query-gpu=name', '--format=csv,noheader']);
  take(
    await runHere('python3', [
      inRoot('test/native/cuda_library.py'),
      inRoot('dist', cudaLibrary),
      inRoot('native/cuda/api.h'),
      gpu === undefined ? 'none' : 'some',
    ]),
  );
  if (gpu === undefined) {
    say('No NVIDIA GPU here: the CUDA kernels were compiled and not run.');
    counts.skipped++;
  } else {
    take(await runHere(path.join(folder, 'test_cuda_kernels'), []));
  }
  return counts;
}

/** What else it exported could be taken for a function of the same name elsewhere in the process. */
function exportsOneFunction() {
  const list = output('nm', ['-D', '--defined-only', inRoot('dist', cudaLibrary)]);
  const names = (list ?? '').split('\n').map((line) => line.split(' ').pop());
  const right = names.length === 1 && names[0] === entry;
  if (!right) say(`✗ ${cudaLibrary} exports ${names.join(', ')}, not ${entry} alone`);
  return right;
}

/** From nothing when a source has changed: the compiler reports resources only as it compiles. */
async function build() {
  const stamp = path.join(folder, 'sources');
  const sources = hashOf(['kernels', 'native/attention', 'native/cuda', 'test/kernels/cuda']);
  const reported = fs.existsSync(stamp) && fs.readFileSync(stamp, 'utf8') === sources;
  if (!reported) fs.rmSync(folder, { recursive: true, force: true });
  await configureCuda(folder, []);
  const log = await step('Building the CUDA engine and its tests', 'cmake', [
    ...['--build', folder, '--parallel', cudaJobs()],
  ]);
  for (const name of [cudaLibrary, 'test_cuda_kernels']) {
    if (!fs.existsSync(path.join(folder, name))) {
      throw new Problem(`The build of the CUDA engine made no ${name}.`);
    }
  }
  // What is compiled again for a change of another folder adds to the report.
  fs.appendFileSync(buildLog, log);
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
