// Builds everything into dist/ (what is shipped) and out-test/ (tests). Incremental.
//   npm run build                 the addon and the bundles; with an NVIDIA GPU, its engine, too
//   npm run build -- --tests      the native tests, too (needs GoogleTest)
//   npm run build -- --cuda       the engine for all GPUs that are supported, also without one here
//   npm run build -- --js         the bundles alone
//   npm run build -- --debug      unoptimized C++ with assertions, in the same folders
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { buildCudaForAll, buildCudaForThisGpu } from './cuda.mjs';
import { withLock } from './lib/lock.mjs';
import { inRoot, root, tool } from './lib/paths.mjs';
import { main, Problem, say, step } from './lib/terminal.mjs';
import { setup } from './setup.mjs';

const oldestNode = 'node20';
/** What is shipped of build/native; the tests have libraries of their own there. */
export const shippedLibrary = /^(lib|longsight).*\.(node|so)$/;

const bundleInputs = inRoot('build/bundle-inputs.json');
const flags = ['debug', 'tests', 'cuda', 'js'];

/** @param {{ debug?: boolean, tests?: boolean, cuda?: boolean, js?: boolean }} [options] see above */
export async function build({ debug = false, tests = false, cuda = false, js = false } = {}) {
  await withLock(inRoot('.deps/build.lock'), 'build', async () => {
    await setup();
    if (!js) {
      await buildNative(debug, tests);
      await (cuda ? buildCudaForAll() : buildCudaForThisGpu());
      copyLibraries();
    }
    await bundle(debug);
  });
}

async function buildNative(debug, tests) {
  const folder = inRoot('build');
  const stamp = path.join(folder, 'configured');
  const options = [
    '--out',
    folder,
    ...(debug ? ['--debug'] : []),
    `--CDLONGSIGHT_TESTS=${tests ? 'ON' : 'OFF'}`,
  ];
  // CMake itself notices changes of its own files; these it cannot see.
  const wanted = JSON.stringify([options, process.version, process.env.CXX ?? '', root]);
  if (!existsSync(path.join(folder, 'CMakeCache.txt')) || read(stamp) !== wanted) {
    rmSync(stamp, { force: true });
    await step(
      'Configuring the native engine',
      process.execPath,
      [tool.cmakeJs, 'configure', ...options],
      { cwd: root },
    );
    writeFileSync(stamp, wanted);
  }
  await step('Building the native engine', 'cmake', [
    '--build',
    folder,
    '--parallel',
    String(availableParallelism()),
  ]);
}

/** What lies beside the addon, into dist/. */
export function copyLibraries() {
  const folder = inRoot('build/native');
  mkdirSync(inRoot('dist'), { recursive: true });
  const built = readdirSync(folder).filter((name) => shippedLibrary.test(name));
  for (const name of built) copyWhenChanged(path.join(folder, name), inRoot('dist', name));
  for (const name of readdirSync(inRoot('dist'))) {
    if (/\.(node|so)$/.test(name) && !built.includes(name)) rmSync(inRoot('dist', name));
  }
}

/** By way of a rename: a process that has the old file mapped keeps it. */
function copyWhenChanged(from, to) {
  const source = statSync(from);
  const target = statSync(to, { throwIfNoEntry: false });
  if (target && target.size === source.size && target.mtimeMs >= source.mtimeMs) return;
  const part = `${to}.${process.pid}`;
  copyFileSync(from, part);
  renameSync(part, to);
}

async function bundle(debug) {
  const begin = performance.now();
  const esbuild = await import('esbuild');
  const common = { absWorkingDir: root, bundle: true, logLevel: 'warning', legalComments: 'none' };
  // Not minified: a stack trace in a user's log should be readable. Source maps are not shipped.
  const node = {
    ...common,
    platform: 'node',
    target: oldestNode,
    format: 'cjs',
    sourcemap: 'linked',
  };
  const web = { ...common, platform: 'browser', target: 'es2022', format: 'iife', minify: !debug };
  const tests = testSources();
  const results = await Promise.allSettled([
    esbuild.build({
      ...node,
      metafile: true,
      entryPoints: {
        extension: 'extension/extension.ts',
        worker: 'extension/engine/worker.ts',
        cli: 'extension/cli/main.ts',
      },
      outdir: 'dist',
      external: ['vscode'],
    }),
    esbuild.build({
      ...web,
      metafile: true,
      entryPoints: { chat: 'extension/webview/chat.ts', stats: 'extension/webview/stats.ts' },
      outdir: 'dist/webview',
    }),
    esbuild.build({
      ...node,
      sourcemap: 'inline',
      entryPoints: tests,
      outbase: 'test',
      // Parts of mocha that only run files in parallel.
      logOverride: { 'require-resolve-not-external': 'silent' },
      outdir: 'out-test',
      external: ['vscode', 'esbuild', 'eslint', 'playwright-core'],
    }),
  ]);
  removeStaleTests(tests);
  // esbuild has printed the places.
  const failed = results.filter((result) => result.status === 'rejected');
  if (failed.length > 0) throw new Problem('Bundling failed.');
  const inputs = results.flatMap(({ value }) => Object.keys(value.metafile?.inputs ?? {}));
  mkdirSync(inRoot('build'), { recursive: true });
  writeFileSync(bundleInputs, JSON.stringify(inputs));
  chmodSync(inRoot('dist/cli.js'), 0o755);
  say(`✓ Bundling (${((performance.now() - begin) / 1000).toFixed(1)} s)`);
}

/** Names of the npm packages whose code is in dist/. */
export function bundledPackages() {
  const names = JSON.parse(readFileSync(bundleInputs, 'utf8'))
    .map((file) => file.split('node_modules/').slice(1).pop())
    .filter((inside) => inside !== undefined)
    .map((inside) => inside.match(/^(@[^/]+\/)?[^/]+/)[0]);
  return [...new Set(names)].sort();
}

/** Test files and the entries of suites; relative to the repository. */
function testSources() {
  return readdirSync(inRoot('test'), { recursive: true })
    .filter((name) => name.endsWith('.test.ts') || name === path.join('vscode', 'index.ts'))
    .filter((name) => !name.startsWith('fixtures'))
    .map((name) => path.join('test', name));
}

/** A test whose source is gone must not go on running. */
function removeStaleTests(sources) {
  const kept = new Set(sources.map((name) => path.relative('test', name).replace(/\.ts$/, '.js')));
  if (!existsSync(inRoot('out-test'))) return;
  for (const name of readdirSync(inRoot('out-test'), { recursive: true })) {
    if (name.endsWith('.js') && !kept.has(name)) rmSync(inRoot('out-test', name));
  }
}

function read(file) {
  return existsSync(file) ? readFileSync(file, 'utf8') : undefined;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  main(async () => {
    const given = process.argv.slice(2).map((flag) => flag.replace(/^--/, ''));
    const unknown = given.filter((flag) => !flags.includes(flag));
    if (unknown.length > 0) {
      const known = flags.map((flag) => `--${flag}`).join(', ');
      throw new Problem(`Unknown option ${unknown.join(' ')}.`, `Known: ${known}.`);
    }
    await build(Object.fromEntries(given.map((flag) => [flag, true])));
  });
}
