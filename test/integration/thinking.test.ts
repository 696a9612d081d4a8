/** A model that thinks, from its template to the terminal: a real GGUF on the real engine. */
import assert from 'node:assert/strict';
import path from 'node:path';
import { Engine, type AskAnswer } from '../../extension/engine/client';
import { defaultParams } from '../../extension/engine/params';
import { defaultSampling } from '../../extension/engine/sampling';
import type { AskRequest, Event } from '../../extension/engine/protocol';
import { writeChainModel } from './support/chainModel';
import { cli, temporaryFolder, workerPath, writeFiles } from './support/longsight';

/** Thinks unless told not to, as Qwen 3 does; the last token tells the two prompts apart. */
const template =
  '{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}<|answer|>' +
  '{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}';
/** Opens the thought itself. */
const openingTemplate =
  '{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}<|answer|><think>';

const model = {
  marks: ['<|turn|>', '<|answer|>'],
  chains: [
    {
      after: '<|answer|>',
      says: [
        '<th',
        'ink',
        '>\nIs',
        ' [a.txt "one"]',
        ' it?',
        '\n</',
        'think>',
        '\n\nYes',
        ': [a.txt',
        ' "two"]',
      ],
    },
    { after: '\n', says: ['No', '.'] },
    { after: '>', says: ['So', ' it', ' goes'] },
  ],
};

describe('integration: a model that thinks', function () {
  this.timeout(60_000);
  const folder = temporaryFolder();
  let engine: Engine;
  let file: string;
  let opening: string;
  before(() => {
    engine = new Engine({ workerPath, background: false });
    file = path.join(folder(), 'chain.gguf');
    opening = path.join(folder(), 'opening.gguf');
    writeChainModel(file, { chatTemplate: template, ...model });
    writeChainModel(opening, { chatTemplate: openingTemplate, ...model });
    writeFiles(path.join(folder(), 'work'), { 'a.txt': 'one\ntwo\n' });
  });
  after(() => engine.dispose());

  interface Seen {
    answer: AskAnswer;
    events: { event: Event; atMs: number }[];
  }

  async function ask(over: Partial<AskRequest> = {}): Promise<Seen> {
    const events: Seen['events'] = [];
    const submitted = performance.now();
    const answer = await engine.ask(
      {
        model: {
          path: file,
          backend: 'cpu',
          device: -1,
          threads: 1,
          contextTokens: 4096,
          kvCache: 'bf16',
        },
        params: { ...defaultParams },
        workspace: {
          folders: [{ name: 'work', path: path.join(folder(), 'work') }],
          unsaved: {},
          budgetTokens: 0,
          strict: false,
        },
        chat: [],
        question: 'Is it?',
        answerTokens: 64,
        sampling: { ...defaultSampling },
        thinking: true,
        savedSession: '',
        confirmAbovePrefillMs: 0,
        ...over,
      },
      { onEvent: (event) => events.push({ event, atMs: performance.now() - submitted }) },
    ).result;
    return { answer, events };
  }

  it('is shown to think, then to answer, and cites from the answer alone', async () => {
    const { answer, events } = await ask();
    assert.equal(answer.thinking, 'Is [a.txt "one"] it?');
    assert.equal(answer.answer, 'Yes: [a.txt "two"]');
    assert.deepEqual(
      answer.citations.map(({ quote, status }) => [quote, status]),
      [['two', 'verified']],
    );
    const textOf = (type: 'thinking' | 'token') =>
      events.map(({ event }) => (event.type === type ? event.text : '')).join('');
    assert.equal(textOf('thinking'), answer.thinking);
    assert.equal(textOf('token'), answer.answer);
    assert.equal(answer.stats.thinking?.tokens, 7);
  });

  it('ends the time to the first token with the first token of the thought', async () => {
    const { answer, events } = await ask();
    const { ttftMs, phases, thinking } = answer.stats;
    const first = events.find(({ event }) => event.type === 'token' || event.type === 'thinking');
    assert.ok(Math.abs(first!.atMs - ttftMs) <= 0.1 * ttftMs + 5, `${first!.atMs}, ${ttftMs}`);
    const sum = Object.values(phases).reduce((total, ms) => total + ms, 0);
    assert.ok(Math.abs(sum - ttftMs) < 1e-6 * ttftMs);
    const answered = events.find(({ event }) => event.type === 'token' && event.text !== '');
    assert.ok(thinking!.ms > 0 && thinking!.ms <= answered!.atMs - ttftMs + 5);
    const order = events.flatMap(({ event }) => (event.type === 'phase' ? [event.phase] : []));
    assert.deepEqual(order.slice(-5), ['prefill', 'firstToken', 'thinking', 'decode', 'done']);
  });

  it('answers at once unless it is told to think', async () => {
    const { answer } = await ask({ thinking: false });
    assert.deepEqual([answer.thinking, answer.answer], ['', 'No.']);
    assert.equal(answer.stats.thinking, null);
  });

  it('goes on with a thought that its template opens, and does not when told not to', async () => {
    const openingModel = {
      path: opening,
      backend: 'cpu',
      device: -1,
      threads: 1,
      contextTokens: 4096,
      kvCache: 'bf16',
    } as const;
    const { answer } = await ask({ model: openingModel });
    assert.deepEqual([answer.thinking, answer.answer], ['So it goes', '']);
    assert.equal(answer.stats.thinking?.tokens, 3);
    const quiet = await ask({ model: openingModel, thinking: false });
    assert.deepEqual([quiet.answer.thinking, quiet.answer.answer], ['', 'No.']);
  });

  it('keeps the thought out of standard output', async () => {
    const args = ['ask', '--model', file, '--workspace', path.join(folder(), 'work')];
    args.push(
      '--question',
      'Is it?',
      '--context-tokens',
      '4096',
      '--max-tokens',
      '64',
      '--thinking',
    );
    const text = await cli([...args, '--show-thinking']);
    assert.equal(text.status, 0, text.stderr);
    assert.match(text.stdout, /^Yes: \[a\.txt "two"\]\n/);
    assert.ok(text.stderr.includes('Is [a.txt "one"] it?\n\n'), text.stderr);
    const json = JSON.parse((await cli([...args, '--json'])).stdout);
    assert.deepEqual([json.thinking, json.answer], ['Is [a.txt "one"] it?', 'Yes: [a.txt "two"]']);
  });
});
