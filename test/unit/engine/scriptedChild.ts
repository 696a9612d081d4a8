/** A child process that plays a script: what `client.ts` sees of an engine, without an engine. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { AskRequest } from '../../../extension/engine/protocol';
import { defaultParams } from '../../../extension/engine/params';
import { defaultSampling } from '../../../extension/engine/sampling';

// The question is the script: commands separated by spaces.
const source = `
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const cancelled = new Set();
let proceed = () => {};
process.on('disconnect', () => process.exit(0));
process.on('message', async (request) => {
  const { sessionId, requestId } = request;
  const send = (event) => process.send({ sessionId, requestId, ...event });
  if (request.type === 'cancel') { cancelled.add(requestId); return; }
  if (request.type === 'proceed') { proceed(); return; }
  if (request.type === 'save') {
    for (let i = 0; i < 40; i++) {
      if (cancelled.has(requestId)) {
        send({ type: 'error', error: { code: 'cancelled', message: 'c', action: '' } });
        return;
      }
      await wait(10);
    }
    send({ type: 'result', result: { saved: true } });
    return;
  }
  for (const command of request.question.split(' ')) {
    const [name, value] = command.split('=');
    if (cancelled.has(requestId) && name !== 'deaf') {
      send({ type: 'error', error: { code: 'cancelled', message: 'c', action: '' } });
      return;
    }
    if (name === 'phase') send({ type: 'phase', phase: value });
    if (name === 'place') send({ type: 'place', backend: value, device: value, fallback: '' });
    if (name === 'token') send({ type: 'token', text: value });
    if (name === 'wait') await wait(Number(value));
    if (name === 'log') send({ type: 'log', level: 'warn', text: value });
    if (name === 'stderr') process.stderr.write(value + '\\n');
    if (name === 'exit') process.exit(Number(value));
    if (name === 'kill') { process.kill(process.pid, value); await wait(10000); }
    if (name === 'confirm') {
      send({ type: 'confirm', predictedPrefillMs: 1, computedTokens: 1, suggestedBudgetTokens: 1 });
      await new Promise((resolve) => (proceed = resolve));
    }
    if (name === 'error') {
      send({ type: 'error', error: { code: value, message: 'm', action: 'a' } });
      return;
    }
    if (name === 'env') {
      send({ type: 'token', text: JSON.stringify([process.execArgv, process.env.NODE_OPTIONS]) });
    }
  }
  const attention = { density: 1, sparseDensity: null, coverageMean: null, coverageP5: null, layers: [] };
  send({ type: 'phase', phase: 'done' });
  send({ type: 'result', result: {
    answer: 'pid ' + process.pid, citations: [], files: { full: 1, path: 0, out: 0 }, stopReason: 'end',
    stats: { model: 'm', backend: 'cpu', device: 'CPU', fallback: '', speculation: null, times: null, params: request.params, promptTokens: 1, reusedTokens: 0,
      computedTokens: 1, prefillTokensPerSecond: 1, decodeTokensPerSecond: 1, attention,
      memory: { weightBytes: 1, kvBytes: 1, scratchBytes: 1, fixedBytes: 0 } },
  } });
});
`;

export class ScriptedChild {
  private readonly folder = mkdtempSync(path.join(os.tmpdir(), 'longsight-child-'));
  readonly workerPath = path.join(this.folder, 'worker.js');

  constructor(text = source) {
    writeFileSync(this.workerPath, text);
  }

  dispose(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** An ask request whose question is a script. */
export function script(question: string): Omit<AskRequest, 'type' | 'sessionId' | 'requestId'> {
  return {
    model: {
      path: '/m.gguf',
      backend: 'auto',
      device: -1,
      threads: 0,
      contextTokens: 0,
      kvCache: 'bf16',
    },
    params: { ...defaultParams },
    workspace: { folders: [], unsaved: {}, budgetTokens: 0, strict: false },
    chat: [],
    question,
    answerTokens: 1,
    sampling: { ...defaultSampling },
    thinking: false,
    savedSession: '',
    confirmAbovePrefillMs: 0,
  };
}
