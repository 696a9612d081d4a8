/**
 * Entry of the suite inside the extension host: runs every *.test.js beside it with mocha.
 *
 * Environment: MOCHA_REPORTER, a reporter's file (default spec); MOCHA_GREP, only matching titles.
 */
import { readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import Mocha from 'mocha';

const timeoutMs = 120_000;

export async function run(): Promise<void> {
  const { MOCHA_REPORTER, MOCHA_GREP } = process.env;
  const mocha = new Mocha({
    ui: 'bdd',
    timeout: timeoutMs,
    color: false,
    reporter: MOCHA_REPORTER
      ? (createRequire(__filename)(MOCHA_REPORTER) as Mocha.ReporterConstructor)
      : 'spec',
    ...(MOCHA_GREP ? { grep: MOCHA_GREP } : {}),
  });
  const files = readdirSync(__dirname).filter((name) => name.endsWith('.test.js'));
  if (files.length === 0) throw new Error(`No tests in ${__dirname}.`);
  for (const name of files.sort()) mocha.addFile(path.join(__dirname, name));
  const failures = await new Promise<number>((resolve) => mocha.run(resolve));
  if (failures > 0) throw new Error(`${failures} failed`);
}
