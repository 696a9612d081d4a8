// What every script shares: how a problem is reported, how a command is run. All of it writes to
// stderr, because stdout belongs to the answer (`longsight ... --json`).
import { spawn, spawnSync } from 'node:child_process';

/** Something the reader can act on: printed without a stack. */
export class Problem extends Error {
  /**
   * @param {string} message what is wrong, with its values
   * @param {string} [action] the way out
   */
  constructor(message, action = '') {
    super(message);
    this.action = action;
  }
}

/** Runs a script's main function; a Problem ends it with status 1 and its way out. */
export function main(body) {
  body().catch((error) => {
    if (!(error instanceof Problem)) throw error;
    say(`\n${error.message}`);
    if (error.action) say(`  ${error.action.replaceAll('\n', '\n  ')}`);
    process.exit(1);
  });
}

export function say(line) {
  process.stderr.write(`${line}\n`);
}

/** Standard output of a command, trimmed; `undefined` when it is missing or fails. */
export function output(command, args, options = {}) {
  const result = spawnSync(command, args, { encoding: 'utf8', ...options });
  return result.status === 0 ? result.stdout.trim() : undefined;
}

/**
 * Runs a command with a title. Its output is shown only when it fails; on a terminal the last line
 * is shown while it runs. Resolves to all that it wrote.
 */
export async function step(title, command, args, options = {}) {
  const begin = performance.now();
  const line = liveLine(title);
  const { status, everything } = await collect(command, args, options, line.update);
  const seconds = ((performance.now() - begin) / 1000).toFixed(1);
  if (status === 0) {
    line.end(`✓ ${title} (${seconds} s)`);
    return everything;
  }
  line.end(`✗ ${title} (${seconds} s)`);
  process.stderr.write(everything.endsWith('\n') ? everything : `${everything}\n`);
  throw new Problem(`${title}: \`${[command, ...args].join(' ')}\` failed (${status}).`);
}

/** Runs a command on this terminal; resolves to its exit status. */
export function runHere(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'], ...options });
    child.once('error', reject);
    child.once('exit', (status, signal) => resolve(status ?? signal));
  });
}

function collect(command, args, options, onLine) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    let everything = '';
    const take = (text) => {
      everything += text;
      const last = text
        .trimEnd()
        .split(/[\r\n]/)
        .pop();
      if (last) onLine(last);
    };
    child.stdout.setEncoding('utf8').on('data', take);
    child.stderr.setEncoding('utf8').on('data', take);
    child.once('error', (error) => reject(new Problem(`${command}: ${error.message}`)));
    child.once('close', (status, signal) => resolve({ status: status ?? signal, everything }));
  });
}

/** One line that is rewritten on a terminal; elsewhere only its end is printed. */
export function liveLine(title) {
  const live = process.stderr.isTTY;
  const clear = '\r\u001b[K';
  if (live) process.stderr.write(`… ${title}`);
  return {
    update(text) {
      if (!live) return;
      const plain = text.replace(/\u001b\[[0-9;]*[A-Za-z]/g, '').replace(/\s+/g, ' ');
      const room = Math.max(0, (process.stderr.columns ?? 80) - title.length - 5);
      process.stderr.write(`${clear}… ${title}: ${plain.slice(0, room)}`);
    },
    end(text) {
      process.stderr.write(`${live ? clear : ''}${text}\n`);
    },
  };
}
