/** One engine process, from the parent's side: start, messages, log lines, end. */
import { fork, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import type { Event, Request } from './protocol';
import { forkOptions } from './spawn';

export interface ChildEnd {
  exitCode: number | null;
  signal: NodeJS.Signals | null;
  /** Why the process could not be started or reached, when that is the reason. */
  failure: string;
  /** Last lines of its output: the place where native code says why it aborts. */
  lastLines: string[];
}

export interface ChildListener {
  onEvent(event: Event): void;
  onLine(line: string): void;
  /** Called once, after the last event. */
  onEnd(end: ChildEnd): void;
}

const keptLines = 20;
// Messages that are still in the pipe when the process ends are worth a short wait.
const drainMs = 500;

export class EngineChild {
  private readonly process: ChildProcess;
  private readonly lines: string[] = [];
  private failure = '';
  private ended = false;
  private closing = false;
  private readonly ending: Promise<void>;

  /** `background`: lets everything else on the machine go first. */
  constructor(workerPath: string, background: boolean, listener: ChildListener) {
    const options = forkOptions({ env: process.env, electron: 'electron' in process.versions });
    this.process = fork(workerPath, background ? ['--background'] : [], options);
    this.process.on('message', (message) => listener.onEvent(message as Event));
    this.process.on('error', (error) => {
      this.failure = error.message;
    });
    for (const stream of [this.process.stdout, this.process.stderr]) {
      if (stream) this.readLines(stream, listener);
    }
    this.ending = this.waitForEnd(listener);
  }

  get pid(): number | undefined {
    return this.process.pid;
  }

  send(request: Request): void {
    if (!this.process.connected) return;
    // A send that fails means that the process is going: `onEnd` tells.
    this.process.send(request, (error) => {
      if (error) this.failure = error.message;
    });
  }

  kill(): void {
    this.process.kill('SIGKILL');
  }

  /** Asks the process to go by closing its channel; kills it when it has not gone in time. */
  async close(graceMs: number): Promise<void> {
    this.closing = true;
    if (this.process.connected) this.process.disconnect();
    const timer = setTimeout(() => this.kill(), graceMs);
    await this.ending;
    clearTimeout(timer);
  }

  private waitForEnd(listener: ChildListener): Promise<void> {
    return new Promise((resolve) => {
      const end = (exitCode: number | null, signal: NodeJS.Signals | null) => {
        if (this.ended) return;
        this.ended = true;
        const { failure, lines } = this;
        listener.onEnd({ exitCode, signal, failure, lastLines: [...lines] });
        resolve();
      };
      this.process.once('exit', (code, signal) => {
        // There is no `close` after a `disconnect` of ours, and nobody waits for what is in the pipe.
        if (this.closing) return end(code, signal);
        const timer = setTimeout(() => end(code, signal), drainMs);
        this.process.once('close', () => {
          clearTimeout(timer);
          end(code, signal);
        });
      });
      this.process.once('error', () => {
        // Not started at all: there will be no `exit`.
        if (this.process.pid === undefined) end(null, null);
      });
    });
  }

  private readLines(stream: Readable, listener: ChildListener): void {
    createInterface({ input: stream }).on('line', (line) => {
      this.lines.push(line);
      if (this.lines.length > keptLines) this.lines.shift();
      listener.onLine(line);
    });
  }
}
