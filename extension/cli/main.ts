#!/usr/bin/env node
/** Entry of the command line: connects `run` with this process. */
import path from 'node:path';
import { Engine } from '../engine/client';
import { installedVersion } from '../engine/system';
import { defaultModel } from '../models/catalog';
import { run } from './run';

const failedStatus = 1;
const interruptedStatus = 130;

// The reader of a pipe may go early, as `head` does, or the disk be full; then nobody gets the rest.
const abort = new AbortController();
let outputLost = false;
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE' && !outputLost) {
    process.stderr.write(`longsight: Standard output cannot be written (${error.code}).\n`);
  }
  outputLost = true;
  process.exitCode = failedStatus;
  abort.abort();
});
process.stderr.on('error', () => undefined);

// The first signal stops the engine in order, the second does not wait for it: the engine process
// ends with this one.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    if (abort.signal.aborted) process.exit(interruptedStatus);
    abort.abort();
  });
}

void run(process.argv.slice(2), {
  terminal: {
    stdout: (text) => process.stdout.write(text),
    stderr: (text) => process.stderr.write(text),
    rewritable: process.stderr.isTTY,
    env: process.env,
    cwd: process.cwd(),
  },
  signal: abort.signal,
  version: installedVersion(__dirname),
  startEngine: (log) =>
    new Engine({ workerPath: path.join(__dirname, 'worker.js'), background: false, log }),
  findModel: async () => (await defaultModel())?.path,
}).then((status) => {
  process.exitCode = outputLost ? failedStatus : status;
});
