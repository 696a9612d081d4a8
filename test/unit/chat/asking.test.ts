import assert from 'node:assert/strict';
import path from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { Asking, type AskingHost } from '../../../extension/chat/asking';
import { Conversation } from '../../../extension/chat/conversation';
import type { Settings } from '../../../extension/config';
import type { AskAnswer, Job, JobOptions } from '../../../extension/engine/client';
import { cancelled, EngineError, invalidParams } from '../../../extension/engine/errors';
import { defaultParams } from '../../../extension/engine/params';
import type { AskRequest } from '../../../extension/engine/protocol';
import type { SavePlace } from '../../../extension/engine/idleSaver';
import { defaultSampling } from '../../../extension/engine/sampling';
import { sessionFile, sessionsFolder } from '../../../extension/engine/sessionStore';
import { event, resultEvent } from './examples';

type Body = Omit<AskRequest, 'type' | 'sessionId' | 'requestId'>;

/** Records what is asked; the test plays the engine. */
class PlayedEngine {
  readonly asked: {
    body: Body;
    options: JobOptions;
    reject(error: Error): void;
    cancelled: boolean;
    proceeded: boolean;
  }[] = [];

  ask(body: Body, options: JobOptions = {}): Job<AskAnswer> {
    let reject!: (error: Error) => void;
    const result = new Promise<AskAnswer>((_, no) => (reject = no));
    const record = { body, options, reject, cancelled: false, proceeded: false };
    this.asked.push(record);
    return {
      sessionId: 's',
      requestId: String(this.asked.length),
      result,
      cancel: () => {
        record.cancelled = true;
        reject(cancelled());
      },
      proceed: () => (record.proceeded = true),
    };
  }

  get last() {
    const last = this.asked.at(-1);
    assert.ok(last, 'something was asked');
    return last;
  }
}

describe('chat/asking', () => {
  let engine: PlayedEngine;
  let conversation: Conversation;
  let host: AskingHost;
  let asking: Asking;
  let model: string;
  let chosen: (path: string | undefined) => void;
  let dialogs: number;
  let saves: string[];

  beforeEach(() => {
    engine = new PlayedEngine();
    conversation = new Conversation();
    model = '/models/a.gguf';
    dialogs = 0;
    saves = [];
    host = {
      settings: (): Settings => ({
        modelPath: model,
        modelsFolder: '',
        backend: 'auto',
        cudaDevice: -1,
        cudaReleaseAfterMinutes: 15,
        threads: 2,
        contextTokens: 8192,
        kvCache: 'bf16',
        calibration: 'auto',
        answerTokens: 64,
        thinking: false,
        confirmAboveSeconds: 30,
        savedSessionsGB: 8,
        params: { ...defaultParams },
        sampling: { ...defaultSampling, temperature: 0.5 },
      }),
      folders: () => [{ name: 'app', path: '/app' }],
      unsaved: () => ({ '/app/a.ts': 'unsaved' }),
      chooseModel: () => {
        dialogs++;
        return new Promise((resolve) => (chosen = resolve));
      },
      log: () => undefined,
    };
    const saver = {
      asked: () => void saves.push('asked'),
      ended: ({ file, mostFolderBytes }: SavePlace) =>
        void saves.push(`ended ${path.basename(file)} ${mostFolderBytes}`),
    };
    asking = new Asking(conversation, engine, saver, host, {
      onChange: () => undefined,
      onEvent: () => undefined,
      onCleared: () => undefined,
    });
  });

  it('asks with the settings, folders and unsaved texts of that moment', async () => {
    asking.ask('  Why?\n');
    await turn();
    const { body } = engine.last;
    assert.equal(body.question, 'Why?');
    assert.deepEqual(body.model, {
      path: '/models/a.gguf',
      backend: 'auto',
      device: -1,
      threads: 2,
      contextTokens: 8192,
      kvCache: 'bf16',
      calibration: 'auto',
    });
    assert.equal(body.answerTokens, 64);
    assert.equal(body.sampling.temperature, 0.5);
    assert.equal(body.confirmAbovePrefillMs, 30_000);
    assert.deepEqual(body.workspace, {
      folders: [{ name: 'app', path: '/app' }],
      unsaved: { '/app/a.ts': 'unsaved' },
      budgetTokens: 0,
      strict: false,
    });
  });

  it('names the saved session of these folders, and has it saved when the question has ended', async () => {
    asking.ask('Why?');
    await turn();
    const { savedSession } = engine.last.body;
    assert.equal(savedSession, sessionFile(sessionsFolder(), '/models/a.gguf', ['/app']));
    assert.deepEqual(saves, ['asked']);
    engine.last.reject(cancelled());
    await turn();
    assert.deepEqual(saves, ['asked', `ended ${path.basename(savedSession)} 8000000000`]);
    const settings = host.settings();
    host.settings = () => ({ ...settings, savedSessionsGB: 0 });
    asking.ask('And now?');
    await turn();
    assert.equal(engine.last.body.savedSession, '');
  });

  it('asks nothing for an empty question', async () => {
    assert.equal(asking.ask(' \n '), undefined);
    await turn();
    assert.equal(conversation.entries.length, 0);
  });

  it('keeps questions while a model is chosen, in one dialog, and asks them afterwards', async () => {
    model = '';
    asking.ask('first');
    asking.ask('second');
    await turn();
    assert.equal(dialogs, 1);
    assert.equal(engine.asked.length, 0);
    chosen('/models/b.gguf');
    await turn();
    assert.deepEqual(
      engine.asked.map(({ body }) => [body.question, body.model.path]),
      [
        ['first', '/models/b.gguf'],
        ['second', '/models/b.gguf'],
      ],
    );
  });

  it('fails with noModel when none is chosen, and can be asked again', async () => {
    model = '';
    const entry = asking.ask('Why?')!;
    await turn();
    chosen(undefined);
    await turn();
    assert.equal(entry.error?.code, 'noModel');
    model = '/models/c.gguf';
    asking.askAgain(entry.id);
    await turn();
    assert.equal(engine.last.body.question, 'Why?');
    assert.equal(conversation.entries.length, 1);
  });

  it('is not asked any more when it was stopped while a model was chosen', async () => {
    model = '';
    const entry = asking.ask('Why?')!;
    await turn();
    asking.stop();
    assert.equal(entry.state, 'stopped');
    chosen('/models/b.gguf');
    await turn();
    assert.equal(engine.asked.length, 0);
  });

  it('shows wrong settings and a missing folder as errors of the question', async () => {
    host.settings = () => {
      throw invalidParams('Setting longsight.threads = -1 is not allowed.');
    };
    assert.equal(asking.ask('a')?.error?.code, 'invalidParams');
    host.settings = () => ({
      modelPath: model,
      modelsFolder: '',
      backend: 'auto',
      cudaDevice: -1,
      cudaReleaseAfterMinutes: 15,
      threads: 0,
      contextTokens: 0,
      kvCache: 'bf16',
      calibration: 'auto',
      answerTokens: 1,
      thinking: false,
      confirmAboveSeconds: 0,
      savedSessionsGB: 0,
      params: { ...defaultParams },
      sampling: { ...defaultSampling },
    });
    host.folders = () => [];
    assert.equal(asking.ask('b')?.error?.code, 'folderNotFound');
    await turn();
    assert.equal(engine.asked.length, 0);
  });

  it('gives a question that waited the answer that came meanwhile', async () => {
    asking.ask('first');
    asking.ask('second');
    await turn();
    const [first, second] = engine.asked;
    first?.options.onEvent?.(event({ type: 'phase', phase: 'load' }));
    assert.deepEqual(first?.body.chat, []);
    first?.options.onEvent?.(resultEvent('one'));
    second?.options.onEvent?.(event({ type: 'phase', phase: 'load' }));
    assert.deepEqual(second?.body.chat, [{ question: 'first', answer: 'one' }]);
  });

  const confirm = event({
    type: 'confirm',
    predictedPrefillMs: 60_000,
    computedTokens: 9000,
    suggestedBudgetTokens: 3000,
  });

  it('starts a long prefill when told so', async () => {
    const entry = asking.ask('Why?')!;
    await turn();
    engine.last.options.onEvent?.(confirm);
    assert.equal(entry.state, 'confirming');
    asking.choose(entry.id, 'start');
    assert.ok(engine.last.proceeded);
    assert.equal(entry.state, 'running');
  });

  it('asks with fewer files in the same place and ignores what the first try still says', async () => {
    const entry = asking.ask('Why?')!;
    await turn();
    const first = engine.last;
    first.options.onEvent?.(confirm);
    asking.choose(entry.id, 'fewerFiles');
    await turn();
    assert.ok(first.cancelled);
    assert.equal(engine.asked.length, 2);
    assert.equal(engine.last.body.workspace.budgetTokens, 3000);
    first.options.onEvent?.(event({ type: 'error', error: cancelled().info }));
    assert.equal(entry.state, 'running');
    engine.last.options.onEvent?.(resultEvent('yes'));
    assert.equal(entry.state, 'done');
    assert.equal(conversation.entries.length, 1);
  });

  it('cancels, and answers a confirmation only once', async () => {
    const entry = asking.ask('Why?')!;
    await turn();
    engine.last.options.onEvent?.(confirm);
    asking.choose(entry.id, 'cancel');
    await turn();
    assert.equal(entry.state, 'stopped');
    asking.choose(entry.id, 'start');
    assert.equal(engine.last.proceeded, false);
  });

  it('stops one waiting question without touching the other', async () => {
    const first = asking.ask('first')!;
    const second = asking.ask('second')!;
    await turn();
    asking.stop(second.id);
    await turn();
    assert.equal(second.state, 'stopped');
    assert.equal(first.state, 'running');
    assert.deepEqual(
      engine.asked.map((record) => record.cancelled),
      [false, true],
    );
  });

  it('shows a crash of the engine and works again', async () => {
    const entry = asking.ask('Why?')!;
    await turn();
    engine.last.reject(new EngineError('engineCrashed', 'ended by signal SIGKILL', 'Ask again.'));
    await turn();
    assert.equal(entry.error?.code, 'engineCrashed');
    asking.askAgain(entry.id);
    await turn();
    engine.last.options.onEvent?.(resultEvent('yes'));
    assert.equal(entry.state, 'done');
  });

  it('forgets the conversation and what it was doing', async () => {
    asking.ask('Why?');
    await turn();
    const { options } = engine.last;
    asking.clear();
    options.onEvent?.(resultEvent('late'));
    await turn();
    assert.ok(engine.last.cancelled);
    assert.equal(conversation.entries.length, 0);
  });
});
