/**
 * Which GPUs can be used. A process that may be lost finds out, because a broken driver crashes or
 * blocks whoever asks it; where there is no GPU, nothing is started and nothing is loaded.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import type { CudaDevice, CudaDevices, RefusedCudaDevice } from './addon';
import { describeEnd } from './crashes';
import type { EngineErrorInfo } from './protocol';
import { forkOptions } from './spawn';

/** Argument with which the engine's file only asks for GPUs. */
export const probeArgument = '--probe-cuda';

/** What the probing process sends. */
export type ProbeReply = { devices: CudaDevices } | { error: EngineErrorInfo };

export interface CudaProblem {
  /** One sentence, with the values. */
  message: string;
  /** The way out; '' when there is none but another GPU. */
  action: string;
  /** A person at this machine can do something about it. */
  fixable: boolean;
}

/** What is known of the GPUs of this machine. */
export interface CudaState {
  usable: readonly CudaDevice[];
  refused: readonly RefusedCudaDevice[];
  /** Why none can be used; null when one can. */
  problem: CudaProblem | null;
}

export interface CudaProbe {
  /** As it was when first asked. */
  state(): Promise<CudaState>;
  /** Asks the driver again. */
  fresh(): Promise<CudaState>;
}

/** Facts about the machine, and the process that asks. */
export interface ProbeParts {
  hasGpu: () => boolean;
  /** The engine for GPUs is installed. */
  hasLibrary: () => boolean;
  /** e.g. `580.65.06`; undefined where the system does not tell. */
  driverVersion: () => string | undefined;
  start: () => ChildProcess;
  timeoutMs: number;
}

const oldestDriver = 580;
const onCpu = 'until then everything runs on the CPU';

export class ChildProbe implements CudaProbe {
  private known: Promise<CudaState> | null = null;

  constructor(private readonly parts: ProbeParts) {}

  state(): Promise<CudaState> {
    return (this.known ??= probe(this.parts));
  }

  fresh(): Promise<CudaState> {
    this.known = null;
    return this.state();
  }
}

async function probe(parts: ProbeParts): Promise<CudaState> {
  if (!parts.hasGpu()) return unusable('No NVIDIA GPU was found.', '', false);
  if (!parts.hasLibrary()) {
    return unusable(
      'This build of Longsight has no engine for GPUs (longsight-cuda.so).',
      'Install the packaged extension, or build it here with `npm run build -- --cuda`.',
      true,
    );
  }
  const reply = await ask(parts);
  if ('problem' in reply) return { usable: [], refused: [], problem: reply.problem };
  if ('error' in reply) return refusedBy(reply.error, parts.driverVersion());
  const { usable, refused } = reply.devices;
  if (usable.length > 0) return { usable, refused, problem: null };
  const problem =
    refused.length === 0
      ? 'The NVIDIA driver shows no GPU to this process.'
      : `No GPU can be used: ${refused.map(({ name, reason }) => `${name}, ${reason}`).join('; ')}.`;
  return { usable, refused, problem: { message: problem, action: '', fixable: false } };
}

function unusable(message: string, action: string, fixable: boolean): CudaState {
  return { usable: [], refused: [], problem: { message, action, fixable } };
}

/** The engine knows the driver's CUDA; people know its number. */
function refusedBy({ message, action }: EngineErrorInfo, driver: string | undefined): CudaState {
  if (driver === undefined || Number.parseInt(driver) >= oldestDriver) {
    return unusable(message, action, true);
  }
  return unusable(
    `The NVIDIA driver is ${driver}; the GPU needs ${oldestDriver} or newer.`,
    `Update the driver; ${onCpu}.`,
    true,
  );
}

/** Settles when there is an answer, when the process ends, or in time: never later. */
function ask({ start, timeoutMs }: ProbeParts): Promise<ProbeReply | { problem: CudaProblem }> {
  return new Promise((resolve) => {
    let child: ChildProcess;
    const lines: string[] = [];
    const failed = (what: string) => ({
      problem: {
        message: `The NVIDIA driver cannot be used: a process that asked it for GPUs ${what}`,
        action: `Restart the machine, or install the driver anew; ${onCpu}.`,
        fixable: true,
      },
    });
    try {
      child = start();
    } catch (error) {
      resolve(failed(`could not be started (${String(error)}).`));
      return;
    }
    const timer = setTimeout(() => {
      // One that waits for a device inside the kernel does not even die: nothing waits for it.
      child.kill('SIGKILL');
      child.unref();
      child.channel?.unref();
      resolve(failed(`had no answer after ${timeoutMs / 1000} s.`));
    }, timeoutMs);
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => lines.push(...text.split('\n')));
    }
    child.once('message', (reply) => {
      clearTimeout(timer);
      resolve(reply as ProbeReply);
    });
    const end = (exitCode: number | null, signal: NodeJS.Signals | null, failure = '') => {
      clearTimeout(timer);
      resolve(failed(describeEnd({ exitCode, signal, failure, lastLines: lines })));
    };
    child.once('error', (error) => end(null, null, error.message));
    // `close`, because a message may still be in the pipe at `exit`.
    child.once('close', (code, signal) => end(code, signal));
  });
}

const probeTimeoutMs = 20_000;

/**
 * The probe of this machine. `workerFile` is the bundled worker.js, `libraryFile` the GPU engine;
 * one that LONGSIGHT_CUDA_LIBRARY names, as it does for the addon, is asked in any case.
 */
export function machineProbe(workerFile: string, libraryFile: string): CudaProbe {
  const named = Boolean(process.env.LONGSIGHT_CUDA_LIBRARY);
  return new ChildProbe({
    hasGpu: () => named || hasGpu(),
    hasLibrary: () => named || existsSync(libraryFile),
    driverVersion: () => parseDriverVersion(readOptional('/proc/driver/nvidia/version')),
    start: () => {
      const options = forkOptions({ env: process.env, electron: 'electron' in process.versions });
      return fork(workerFile, [probeArgument], options);
    },
    timeoutMs: probeTimeoutMs,
  });
}

/** In WSL every GPU has the same device; the driver's library is only there for NVIDIA's. */
function hasGpu(): boolean {
  return (
    existsSync('/dev/nvidiactl') ||
    (existsSync('/dev/dxg') && existsSync('/usr/lib/wsl/lib/libcuda.so.1'))
  );
}

/** `580.65.06` of the text that the kernel module shows. */
export function parseDriverVersion(text: string): string | undefined {
  return /Kernel Module\b.*?\s(\d{3,}(?:\.\d+)+)\s/.exec(text)?.[1];
}

function readOptional(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
