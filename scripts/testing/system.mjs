// What npm and pip cannot install: named with its command and size, or installed by apt-get.
import { existsSync } from 'node:fs';
import { findChromium, hasCodeServer } from '../code-server.mjs';
import { output, Problem, say, step } from '../lib/terminal.mjs';

const needs = [
  {
    what: 'GoogleTest',
    suites: ['native'],
    packages: ['libgtest-dev'],
    megabytes: 5,
    there: () => existsSync('/usr/include/gtest/gtest.h'),
  },
  {
    what: 'Chromium (or another one: CHROMIUM=/path/to/it)',
    suites: ['vscode', 'browser'],
    packages: ['chromium'],
    megabytes: 400,
    there: () => findChromium() !== undefined,
  },
  {
    what: 'a font',
    suites: ['vscode', 'browser'],
    packages: ['fonts-dejavu-core'],
    megabytes: 3,
    there: () => existsSync('/usr/share/fonts') && existsSync('/usr/share/fonts/truetype'),
  },
  {
    what: 'Kerberos headers and pkg-config, to compile code-server',
    suites: ['vscode', 'browser'],
    packages: ['libkrb5-dev', 'pkg-config'],
    megabytes: 10,
    there: () =>
      hasCodeServer() ||
      (existsSync('/usr/include/krb5.h') && output('pkg-config', ['--version']) !== undefined),
  },
];

/**
 * Installs what is missing when `install` is set, else says how.
 * @returns {Promise<Set<string>>} the suites that cannot run
 */
export async function prepareSystem({ install }) {
  let missing = needs.filter((need) => !need.there());
  if (missing.length > 0 && install) {
    await installPackages(missing.flatMap((need) => need.packages));
    missing = needs.filter((need) => !need.there());
    if (missing.length > 0) {
      throw new Problem(
        `Still missing after apt-get: ${missing.map((need) => need.what).join('; ')}.`,
      );
    }
  }
  if (missing.length > 0) {
    say('\nMissing, so that some suites cannot run:');
    for (const need of missing) {
      say(`  ${need.what} (${need.megabytes} MB), for ${need.suites.join(' and ')}`);
    }
    const packages = missing.flatMap((need) => need.packages).join(' ');
    say(`Install it: ${sudo()}apt-get install -y --no-install-recommends ${packages}`);
    say('or let this script do so: npm test -- --install-system\n');
  }
  return new Set(missing.flatMap((need) => need.suites));
}

async function installPackages(packages) {
  if (output('apt-get', ['--version']) === undefined) {
    throw new Problem(
      'There is no apt-get on this system.',
      `Install the counterparts of these Debian packages: ${packages.join(' ')}`,
    );
  }
  const [first, ...rest] = [...sudo().split(' ').filter(Boolean), 'apt-get'];
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  await step('Updating the package lists', first, [...rest, 'update'], { env });
  // prettier-ignore
  await step(`Installing ${packages.join(', ')}`, first, [
    ...rest, 'install', '-y', '--no-install-recommends', ...packages,
  ], { env });
}

function sudo() {
  return process.getuid() === 0 ? '' : 'sudo ';
}
