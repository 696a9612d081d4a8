// `npm test`: installs, builds, and runs every suite; the last line is "N passed, N failed".
//   npm test -- --install-system    also installs what apt-get must install (CI=true does so, too)
//   npm test -- --only unit,native  some suites
import { build } from './build.mjs';
import { installCodeServer } from './code-server.mjs';
import { main, Problem, say } from './lib/terminal.mjs';
import { fetchModel } from './model.mjs';
import { setup } from './setup.mjs';
import { suites } from './testing/suites.mjs';
import { installOracles } from './testing/pythonPackages.mjs';
import { prepareSystem } from './testing/system.mjs';

main(async () => {
  const { only, installSystem } = options(process.argv.slice(2));
  const strict = process.env.CI === 'true';
  const begin = performance.now();

  await setup();
  const impossible = await prepareSystem({ install: installSystem || strict });
  const wanted = Object.keys(suites).filter((name) => only.length === 0 || only.includes(name));
  const runs = wanted.filter((name) => !impossible.has(name));
  const inEditor = runs.some((name) => name === 'vscode' || name === 'browser');
  if (inEditor) await installCodeServer();
  if (runs.includes('native') || runs.includes('integration')) await installOracles();
  const model = process.env.LONGSIGHT_TEST_MODEL || (await fetchModel());
  await build({ tests: !impossible.has('native') });

  const rows = [];
  for (const name of wanted) {
    say(`\n── ${name} ${'─'.repeat(70 - name.length)}`);
    if (impossible.has(name)) {
      say('not run: see above what is missing');
      rows.push({ name, passed: 0, failed: 0, skipped: 1, note: 'not run' });
      continue;
    }
    const started = performance.now();
    const counts = await suites[name](model).catch((error) => {
      say(error instanceof Problem ? `✗ ${error.message}` : error.stack);
      return { passed: 0, failed: 1, skipped: 0, note: 'did not run' };
    });
    rows.push({ name, ...counts, seconds: (performance.now() - started) / 1000 });
  }
  report(rows, (performance.now() - begin) / 1000);
});

function report(rows, seconds) {
  say('');
  for (const { name, passed, failed, skipped, note, seconds: own } of rows) {
    const counts = [
      `${passed} passed`,
      `${failed} failed`,
      ...(skipped ? [`${skipped} skipped`] : []),
    ];
    const time = own === undefined ? '' : ` in ${own.toFixed(1)} s`;
    say(
      `${failed ? '✗' : '✓'} ${name.padEnd(12)} ${counts.join(', ')}${time}${note ? ` (${note})` : ''}`,
    );
  }
  say(`  ${seconds.toFixed(0)} s in all\n`);
  const sum = (key) => rows.reduce((total, row) => total + row[key], 0);
  const skipped = sum('skipped') > 0 ? `, ${sum('skipped')} skipped` : '';
  process.stdout.write(`${sum('passed')} passed, ${sum('failed')} failed${skipped}\n`);
  process.exitCode = sum('failed') > 0 || sum('passed') === 0 ? 1 : 0;
}

function options(args) {
  const only = [];
  let installSystem = false;
  for (let index = 0; index < args.length; index++) {
    if (args[index] === '--install-system') installSystem = true;
    else if (args[index] === '--only') only.push(...(args[++index] ?? '').split(','));
    else
      throw new Problem(
        `Unknown option ${args[index]}.`,
        'Known: --install-system, --only SUITE,…',
      );
  }
  const unknown = only.filter((name) => !(name in suites));
  if (unknown.length > 0) {
    throw new Problem(
      `Unknown suite ${unknown.join(', ')}.`,
      `Known: ${Object.keys(suites).join(', ')}`,
    );
  }
  return { only, installSystem };
}
