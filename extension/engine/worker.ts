/**
 * The engine process: the only code that loads the addon. It runs one request at a time for the
 * process that forked it, and ends with that process. Forked with `--probe-cuda` it says which GPUs
 * there are, and ends.
 */
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import type { Addon } from './addon';
import { machineProbe, probeArgument, type ProbeReply } from './cudaProbe';
import { toErrorInfo } from './errors';
import { Jobs } from './jobs';
import { loadAddon } from './loadAddon';
import type { Event, Request } from './protocol';
import { glibcVersion, installedVersion } from './system';

const heartbeatMs = 1_000;

// Before native threads exist, because they inherit it.
if (process.argv.includes('--background')) {
  try {
    const { PRIORITY_BELOW_NORMAL } = os.constants.priority;
    if (os.getPriority() < PRIORITY_BELOW_NORMAL) os.setPriority(PRIORITY_BELOW_NORMAL);
  } catch {
    // Not permitted in some containers; the work is the same.
  }
}

// A normal exit would wait for native threads that still compute.
process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
// Ctrl-C reaches every process of a terminal; the asking side decides what it means.
process.on('SIGINT', () => undefined);

if (!process.connected) {
  process.stderr.write('This file is started by Longsight, not by hand.\n');
  process.exit(2);
}

let loaded: Addon | null = null;
const addon = (): Addon => {
  const file = path.join(__dirname, 'longsight.node');
  loaded ??= loadAddon(file, createRequire(__filename), glibcVersion());
  return loaded;
};

if (process.argv.includes(probeArgument)) probe();
else serve();

function probe(): void {
  let reply: ProbeReply;
  try {
    reply = { devices: addon().cudaDevices() };
  } catch (error) {
    reply = { error: toErrorInfo(error) };
  }
  // A driver may crash or block at the end of a process, too.
  process.send!(reply, undefined, undefined, () => process.kill(process.pid, 'SIGKILL'));
}

function serve(): void {
  const send = (event: Event): void => {
    // A message that cannot be sent has lost its reader: `disconnect` follows.
    if (process.connected) process.send!(event, undefined, undefined, () => undefined);
  };
  const jobs = new Jobs({
    addon,
    cuda: machineProbe(__filename, path.join(__dirname, 'longsight-cuda.so')),
    send,
    now: () => performance.now(),
    version: installedVersion(__dirname),
  });
  process.on('message', (message) => jobs.handle(message as Request));
  setInterval(() => {
    send({ type: 'heartbeat', ...jobs.current(), rssBytes: process.memoryUsage.rss() });
  }, heartbeatMs);
}
