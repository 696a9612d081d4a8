// `npm run check`: types, ESLint, Prettier, clang-format. `npm run check -- --fix` repairs what can
// be repaired. Needs no build.
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { inRoot, root, tool } from './lib/paths.mjs';
import { main, Problem, runHere, say } from './lib/terminal.mjs';
import { setup } from './setup.mjs';

/** @returns {Promise<{ name: string, passed: boolean }[]>} */
export async function check({ fix = false } = {}) {
  const node = (...args) => [process.execPath, args];
  const checks = [
    ['types', ...node(tool.tsc, '-p', '.')],
    ['types of the webviews', ...node(tool.tsc, '-p', 'extension/webview')],
    ['ESLint', ...node(tool.eslint, '.', '--max-warnings', '0', ...(fix ? ['--fix'] : []))],
    ['Prettier', ...node(tool.prettier, '.', '--log-level', 'warn', fix ? '--write' : '--check')],
    ['clang-format', clangFormat(), [...(fix ? ['-i'] : ['--dry-run', '-Werror']), ...cppFiles()]],
  ];
  const results = [];
  for (const [name, command, args] of checks) {
    const passed = (await runHere(command, args, { cwd: root })) === 0;
    say(`${passed ? '✓' : '✗'} ${name}`);
    results.push({ name, passed });
  }
  return results;
}

/** The binary itself: the package's launcher starts one process for each file. */
function clangFormat() {
  return inRoot('node_modules/clang-format/bin/linux_x64/clang-format');
}

function cppFiles() {
  return ['native', 'kernels', 'test']
    .filter((folder) => existsSync(inRoot(folder)))
    .flatMap((folder) =>
      readdirSync(inRoot(folder), { recursive: true })
        .filter((name) => /\.(cpp|h|cu|cuh)$/.test(name) && !name.startsWith('fixtures'))
        .map((name) => path.join(folder, name)),
    );
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  main(async () => {
    await setup();
    const failed = (await check({ fix: process.argv.includes('--fix') })).filter(
      (each) => !each.passed,
    );
    if (failed.length > 0) {
      throw new Problem(
        `${failed.length} of the checks failed: ${failed.map((each) => each.name).join(', ')}.`,
        'Formatting and some lint errors: npm run check -- --fix',
      );
    }
  });
}
