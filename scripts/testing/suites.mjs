// The suites: how each is run, and how many of its tests passed, failed or were skipped.
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { check } from '../check.mjs';
import { inRoot, root, tool } from '../lib/paths.mjs';
import { Problem, say } from '../lib/terminal.mjs';
import { codeServerHome } from '../code-server.mjs';
import { pack } from '../package.mjs';
import { testCudaKernels } from './cuda.mjs';
import { unpackExtension } from './unpackedExtension.mjs';

const suiteTimeoutMs = 600_000;
const mochaTimeout = '20000';
const reporter = inRoot('scripts/testing/reporter.cjs');

/** @typedef {{ passed: number, failed: number, skipped: number }} Counts */

/** @type {Record<string, (model: string) => Promise<Counts>>} in the order in which they run */
export const suites = {
  check: async () => {
    const results = await check();
    const passed = results.filter((result) => result.passed).length;
    return { passed, failed: results.length - passed, skipped: 0 };
  },
  unit: (model) => runMocha(compiled('unit'), model),
  native: runNative,
  cuda: testCudaKernels,
  integration: (model) => runMocha(compiled('integration'), model),
  package: async () => {
    await pack();
    return { passed: 1, failed: 0, skipped: 0 };
  },
  vscode: runInVsCode,
  browser: (model) =>
    inTemporaryHome(model, (env) => runMocha(sources('browser', '.test.mjs'), model, env)),
};

async function runMocha(files, model, env = {}) {
  return counted(model, (testEnv) => [
    [
      tool.mocha,
      '--reporter',
      reporter,
      '--no-config',
      '--timeout',
      mochaTimeout,
      '--exit',
      ...files,
    ],
    { ...testEnv, ...env },
  ]);
}

/** Runs a Node script that writes its counts to LONGSIGHT_TEST_REPORT. */
async function counted(model, command) {
  const report = path.join(os.tmpdir(), `longsight-report-${process.pid}.json`);
  fs.rmSync(report, { force: true });
  const [args, env] = command({
    ...process.env,
    LONGSIGHT_TEST_MODEL: model,
    LONGSIGHT_TEST_REPORT: report,
  });
  const status = await runLimited(process.execPath, ['--enable-source-maps', ...args], env);
  return readCounts(report, status);
}

function readCounts(report, status) {
  if (!fs.existsSync(report))
    return { passed: 0, failed: 1, skipped: 0, note: `ended (${status})` };
  const counts = JSON.parse(fs.readFileSync(report, 'utf8'));
  fs.rmSync(report);
  // A suite that reports success and fails nevertheless has failed.
  if (status !== 0 && counts.failed === 0)
    return { ...counts, failed: 1, note: `ended (${status})` };
  return counts;
}

async function runNative(model) {
  const folder = inRoot('build/native');
  const programs = fs.readdirSync(folder).filter((name) => /^test_\w+$/.test(name));
  if (programs.length === 0) throw new Problem(`There are no native tests in ${folder}.`);
  // Most tests compute on one thread: half of them beside the other half takes little more than half
  // the time. More processes would each load the model and compute what tests share.
  const shards = Math.min(2, os.availableParallelism());
  const total = { passed: 0, failed: 0, skipped: 0 };
  for (const name of programs) {
    say(name);
    const program = path.join(folder, name);
    const parts = Array.from({ length: shards }, (_, index) =>
      runGoogleTest(program, {
        LONGSIGHT_TEST_MODEL: model,
        GTEST_TOTAL_SHARDS: String(shards),
        GTEST_SHARD_INDEX: String(index),
      }),
    );
    for (const counts of await Promise.all(parts))
      for (const key of Object.keys(total)) total[key] += counts[key];
  }
  return total;
}

async function runGoogleTest(program, env) {
  const name = path.basename(program);
  const report = path.join(
    os.tmpdir(),
    `longsight-${name}-${process.pid}-${env.GTEST_SHARD_INDEX}.json`,
  );
  const status = await runLimited(program, ['--gtest_brief=1', `--gtest_output=json:${report}`], {
    ...process.env,
    ...env,
  });
  const counts = fs.existsSync(report)
    ? googleTestCounts(JSON.parse(fs.readFileSync(report, 'utf8')))
    : { passed: 0, failed: 0, skipped: 0 };
  fs.rmSync(report, { force: true });
  if (status !== 0 && counts.failed === 0) {
    say(`✗ ${name} ended (${status})`);
    counts.failed = 1;
  }
  return counts;
}

function googleTestCounts(report) {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const test of report.testsuites.flatMap((suite) => suite.testsuite)) {
    if (test.failures) counts.failed++;
    else if (test.result === 'COMPLETED') counts.passed++;
    else counts.skipped++;
  }
  return counts;
}

/** The suite inside the extension host, on what the package holds, away from the repository. */
async function runInVsCode(model) {
  return inTemporaryHome(model, async (env, folder) => {
    const { runTests } = await import('@vscode/test-electron');
    const tests = path.join(folder, 'tests');
    fs.cpSync(inRoot('out-test/vscode'), tests, { recursive: true });
    fs.copyFileSync(reporter, path.join(tests, 'reporter.cjs'));
    const workspace = path.join(folder, 'sample workspace');
    fs.cpSync(inRoot('test/fixtures/sample-workspace'), workspace, { recursive: true });
    const report = path.join(folder, 'report.json');
    const desktop = process.env.VSCODE_EXECUTABLE;
    try {
      await runTests({
        vscodeExecutablePath: desktop || inRoot('scripts/vscode-shim.mjs'),
        extensionDevelopmentPath: unpackExtension(env.LONGSIGHT_VSIX, folder),
        extensionTestsPath: path.join(tests, 'index.js'),
        extensionTestsEnv: {
          ...env,
          LONGSIGHT_TEST_REPORT: report,
          LONGSIGHT_TEST_TIMEOUT_MS: String(suiteTimeoutMs),
          MOCHA_REPORTER: path.join(tests, 'reporter.cjs'),
        },
        launchArgs: [
          workspace,
          '--disable-extensions',
          `--user-data-dir=${path.join(folder, 'data')}`,
        ],
      });
      return readCounts(report, 0);
    } catch (error) {
      return readCounts(report, error.message);
    }
  });
}

/**
 * A home that holds the model and nothing else.
 * @param {(env: Record<string, string>, folder: string) => Promise<Counts>} body
 */
async function inTemporaryHome(model, body) {
  const { version } = JSON.parse(fs.readFileSync(inRoot('package.json'), 'utf8'));
  // The path is what a person's may be: with a space and a letter outside ASCII.
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'longsight prüfung '));
  try {
    const dataHome = path.join(folder, 'home/.local/share');
    const models = path.join(dataHome, 'longsight/models');
    fs.mkdirSync(models, { recursive: true });
    const copy = path.join(models, path.basename(model));
    fs.copyFileSync(model, copy, fs.constants.COPYFILE_FICLONE);
    return await body(
      {
        CODE_SERVER_HOME: codeServerHome,
        HOME: path.join(folder, 'home'),
        XDG_DATA_HOME: dataHome,
        XDG_CACHE_HOME: path.join(folder, 'cache'),
        LONGSIGHT_VSIX: inRoot(`longsight-linux-x64-${version}.vsix`),
        LONGSIGHT_TEST_MODEL: copy,
      },
      folder,
    );
  } finally {
    fs.rmSync(folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  }
}

/** Runs a command on this terminal, and ends it and what it started when it takes too long. */
function runLimited(command, args, env) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      cwd: root,
      env,
      stdio: ['ignore', 'inherit', 'inherit'],
      detached: true,
    });
    const end = (signal) => {
      try {
        process.kill(-child.pid, signal);
      } catch {
        // It has just ended.
      }
    };
    const timer = setTimeout(() => {
      say(`✗ ${path.basename(command)} took more than ${suiteTimeoutMs / 60_000} minutes.`);
      end('SIGKILL');
    }, suiteTimeoutMs);
    const interrupted = (signal) => {
      end(signal);
      process.exit(1);
    };
    // A group of its own does not hear the terminal's interrupt.
    process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
    const settle = () => {
      clearTimeout(timer);
      process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
    };
    child.once('error', (error) => {
      settle();
      reject(error);
    });
    child.once('exit', (status, signal) => {
      settle();
      resolve(status ?? signal);
    });
  });
}

function compiled(suite) {
  return filesBelow(inRoot('out-test', suite), '.test.js');
}

function sources(suite, ending) {
  return filesBelow(inRoot('test', suite), ending);
}

function filesBelow(folder, ending) {
  const files = fs.existsSync(folder)
    ? fs.readdirSync(folder, { recursive: true }).filter((name) => name.endsWith(ending))
    : [];
  if (files.length === 0) throw new Problem(`There are no tests (*${ending}) in ${folder}.`);
  return files.sort().map((name) => path.join(folder, name));
}
