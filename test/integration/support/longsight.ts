/** The built product, a model, and processes to look at. Runs from the repository's root. */
import { spawn, type ChildProcess, type SpawnOptions } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';

export const dist = path.resolve('dist');
export const workerPath = path.join(dist, 'worker.js');
export const sampleWorkspace = path.resolve('test/fixtures/sample-workspace');

const demoModel = 'SmolLM2-135M-Instruct.Q4_1.gguf';

/** The GGUF that the tests use; fails when there is none, since without it nothing is tested. */
export function testModel(): string {
  const dataFolder = process.env.XDG_DATA_HOME || path.join(os.homedir(), '.local', 'share');
  const file =
    process.env.LONGSIGHT_TEST_MODEL || path.join(dataFolder, 'longsight', 'models', demoModel);
  if (!existsSync(file)) {
    throw new Error(
      `There is no test model ${file}: run \`npm run try\` or set LONGSIGHT_TEST_MODEL.`,
    );
  }
  return path.resolve(file);
}

/** A temporary folder that is gone after the suite. Call inside `describe`. */
export function temporaryFolder(): () => string {
  let folder = '';
  before(() => (folder = mkdtempSync(path.join(os.tmpdir(), 'longsight-integration-'))));
  after(() => rmSync(folder, { recursive: true, force: true }));
  return () => folder;
}

export function writeFiles(folder: string, files: Record<string, string>): string {
  for (const [name, text] of Object.entries(files)) {
    const file = path.join(folder, name);
    mkdirSync(path.dirname(file), { recursive: true });
    writeFileSync(file, text);
  }
  return folder;
}

export interface Finished {
  status: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface CommandLine {
  process: ChildProcess;
  finished: Promise<Finished>;
  /** Resolves when standard error matches. */
  said(pattern: RegExp): Promise<void>;
}

/** Starts the built command line, or the one of `bundle`. */
export function startCli(args: string[], options: SpawnOptions = {}, bundle = dist): CommandLine {
  const env = { ...process.env, LONGSIGHT_MODEL: '', ...options.env };
  const started = spawn(process.execPath, [path.join(bundle, 'cli.js'), ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    ...options,
    env,
  });
  let stdout = '';
  let stderr = '';
  started.stdout?.on('data', (data: Buffer) => (stdout += data));
  started.stderr?.on('data', (data: Buffer) => (stderr += data));
  const finished = new Promise<Finished>((resolve, reject) => {
    started.once('error', reject);
    started.once('close', (status, signal) => resolve({ status, signal, stdout, stderr }));
  });
  const said = async (pattern: RegExp) => {
    while (!pattern.test(stderr)) {
      if (started.exitCode !== null) throw new Error(`ended without ${pattern}: ${stderr}`);
      await wait(10);
    }
  };
  return { process: started, finished, said };
}

export function cli(args: string[], options: SpawnOptions = {}, bundle = dist): Promise<Finished> {
  return startCli(args, options, bundle).finished;
}

export function isAlive(pid: number): boolean {
  try {
    // A process that has ended but was not waited for is a zombie, not alive.
    return !/^\d+ \(.*\) Z/s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

export async function untilGone(pid: number, limitMs: number): Promise<boolean> {
  const end = performance.now() + limitMs;
  while (performance.now() < end) {
    if (!isAlive(pid)) return true;
    await wait(10);
  }
  return !isAlive(pid);
}

/** CPU time of a process, user and system, of all threads. */
export function cpuMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const ticksPerSecond = 100;
  return ((Number(fields[11]) + Number(fields[12])) * 1000) / ticksPerSecond;
}

export function childrenOf(pid: number): number[] {
  const list = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8');
  return list.split(' ').filter(Boolean).map(Number);
}
