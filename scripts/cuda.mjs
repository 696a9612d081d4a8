// The CUDA engine, longsight-cuda.so, into build/native beside the addon. The compiler comes from
// cuda-requirements.txt: neither a toolkit nor a GPU is needed to build it.
import { copyFileSync, existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, totalmem } from 'node:os';
import path from 'node:path';
import { inRoot } from './lib/paths.mjs';
import { output, Problem, say, step } from './lib/terminal.mjs';
import { installCudaCompiler } from './testing/pythonPackages.mjs';

export const cudaLibrary = 'longsight-cuda.so';
/** All architectures, and the tests of the kernels. */
export const wholeCudaFolder = inRoot('build/cuda');

const placed = inRoot('build/native', cudaLibrary);
const oldestCapability = 80;
// What kernels/cuda/CMakeLists.txt builds by default; other GPUs translate the code of the oldest.
const architectures = new Map([
  [80, '80-real'],
  [86, '86-real'],
  [89, '89-real'],
  [90, '90a-real'],
  [120, '120-real'],
]);
const portable = '80-virtual';
// No file takes more than 0.3 GB while it is compiled.
const bytesAJob = 2 ** 30;

/**
 * What `npm run build` does: on a machine with a GPU the engine for that GPU alone; without one,
 * none. A machine that cannot build it still gets everything else.
 */
export async function buildCudaForThisGpu() {
  const wanted = thisGpu();
  if (wanted.length === 0) {
    rmSync(placed, { force: true });
    return;
  }
  try {
    await buildLibrary(inRoot(`build/cuda-${wanted.join('-').replaceAll('-real', '')}`), [
      '-DLONGSIGHT_CUDA_TESTS=OFF',
      `-DCMAKE_CUDA_ARCHITECTURES=${wanted.join(';')}`,
    ]);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    rmSync(placed, { force: true });
    say(`The engine for GPUs is not built: ${error.message}\n  ${error.action}`);
  }
}

/** For every GPU that is supported: what the package holds. */
export async function buildCudaForAll() {
  await buildLibrary(wholeCudaFolder, []);
}

async function buildLibrary(folder, options) {
  await configureCuda(folder, options);
  await step('Building the CUDA engine', 'cmake', [
    ...['--build', folder, '--target', 'longsight-cuda'],
    ...['--parallel', cudaJobs()],
  ]);
  placeCudaLibrary(folder);
}

/** Installs the compiler and runs CMake where that has not been done with these options. */
export async function configureCuda(folder, options) {
  await installCudaCompiler();
  const stamp = path.join(folder, 'configured');
  const wanted = JSON.stringify([options, readFileSync(inRoot('cuda-requirements.txt'), 'utf8')]);
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) return;
  rmSync(folder, { recursive: true, force: true });
  const ninja = output('ninja', ['--version']) === undefined ? [] : ['-G', 'Ninja'];
  await step('Configuring the CUDA engine', 'cmake', [
    ...['-S', inRoot('kernels/cuda'), '-B', folder],
    ...ninja,
    ...options,
  ]);
  writeFileSync(stamp, wanted);
}

/** As many compilers at once as cores and memory allow. */
export function cudaJobs() {
  const most = Math.max(1, Math.floor(totalmem() / bytesAJob));
  return String(Math.min(availableParallelism(), most));
}

/** By way of a rename: a process that has the old file mapped keeps it. */
export function placeCudaLibrary(folder) {
  const part = `${placed}.${process.pid}`;
  copyFileSync(path.join(folder, cudaLibrary), part);
  renameSync(part, placed);
}

/** CMake's names for the architectures of the GPUs here; empty when none can be used. */
function thisGpu() {
  const listed = output('nvidia-smi', ['--query-gpu=compute_cap', '--format=csv,noheader']);
  if (listed === undefined) return [];
  const capabilities = listed
    .split('\n')
    .map((line) => Math.round(Number(line.trim()) * 10))
    .filter((capability) => capability >= oldestCapability);
  const names = capabilities.map((capability) => architectures.get(capability) ?? portable);
  return [...new Set(names)].sort();
}
