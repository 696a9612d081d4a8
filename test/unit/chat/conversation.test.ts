import assert from 'node:assert/strict';
import { Conversation, isThinking } from '../../../extension/chat/conversation';
import { event, exampleCitation, resultEvent } from './examples';

describe('chat/conversation', () => {
  let conversation: Conversation;
  beforeEach(() => (conversation = new Conversation()));

  it('follows a question from the queue to the answer', () => {
    const { id } = conversation.begin('Why?');
    const entry = () => conversation.get(id)!;
    assert.equal(entry().state, 'running');
    conversation.apply(id, event({ type: 'phase', phase: 'queue', ahead: 2 }));
    assert.equal(entry().progress.ahead, 2);
    conversation.apply(id, event({ type: 'phase', phase: 'prefill' }));
    conversation.apply(
      id,
      event({
        type: 'progress',
        phase: 'prefill',
        done: 50,
        total: 200,
        unit: 'tokens',
        perSecond: 10,
        etaMs: 15_000,
      }),
    );
    assert.deepEqual(entry().progress, {
      phase: 'prefill',
      ahead: 0,
      share: 0.25,
      etaMs: 15_000,
      perSecond: 10,
    });
    assert.deepEqual(conversation.apply(id, event({ type: 'token', text: 'Be' })), {
      kind: 'append',
      text: 'Be',
    });
    conversation.apply(id, event({ type: 'token', text: 'cause' }));
    assert.equal(entry().answer, 'Because');
    assert.deepEqual(conversation.apply(id, resultEvent('Because.', [exampleCitation()])), {
      kind: 'entry',
    });
    assert.equal(entry().state, 'done');
    assert.equal(entry().answer, 'Because.');
    assert.equal(entry().citations.length, 1);
    assert.equal(entry().stats?.ttftMs, 3234);
    assert.deepEqual(conversation.open, []);
  });

  it('keeps why the CPU computes, until the question is asked again', () => {
    const { id } = conversation.begin('Why?');
    const fallback = 'The NVIDIA driver is 535.1; the GPU needs 580 or newer.';
    const place = event({ type: 'place', backend: 'cpu', device: 'CPU', fallback });
    assert.deepEqual(conversation.apply(id, place), { kind: 'entry' });
    assert.equal(conversation.get(id)?.fallback, fallback);
    conversation.apply(id, resultEvent('Because.'));
    assert.equal(conversation.restart(id)?.fallback, '');
  });

  it('keeps a thought apart from the answer, and out of later prompts', () => {
    const { id } = conversation.begin('Why?');
    conversation.apply(id, event({ type: 'phase', phase: 'thinking' }));
    const thought = event({ type: 'thinking', text: 'Hm', elapsedMs: 800 });
    assert.deepEqual(conversation.apply(id, thought), {
      kind: 'thought',
      text: 'Hm',
      elapsedMs: 800,
    });
    conversation.apply(id, event({ type: 'thinking', text: ', so.', elapsedMs: 1900 }));
    const entry = conversation.get(id)!;
    assert.equal(isThinking(entry), true);
    assert.deepEqual([entry.thinking, entry.thinkingMs, entry.answer], ['Hm, so.', 1900, '']);
    conversation.apply(id, event({ type: 'token', text: 'Because' }));
    conversation.apply(id, event({ type: 'phase', phase: 'decode' }));
    assert.equal(isThinking(entry), false);
    const stopped = event({ type: 'error', error: { code: 'cancelled', message: '', action: '' } });
    conversation.apply(id, stopped);
    assert.deepEqual([entry.thinking, entry.thinkingMs], ['Hm, so.', 1900]);
    assert.deepEqual(conversation.turnsBefore(id + 1), [{ question: 'Why?', answer: 'Because' }]);
    conversation.restart(id);
    assert.deepEqual([entry.thinking, entry.thinkingMs], ['', 0]);
  });

  it('asks before a long prefill and goes on when told so', () => {
    const { id } = conversation.begin('Why?');
    conversation.apply(
      id,
      event({
        type: 'confirm',
        predictedPrefillMs: 840_000,
        computedTokens: 118_000,
        suggestedBudgetTokens: 4096,
      }),
    );
    assert.equal(conversation.get(id)?.state, 'confirming');
    assert.equal(conversation.get(id)?.confirmation?.suggestedBudgetTokens, 4096);
    conversation.proceed(id);
    assert.equal(conversation.get(id)?.state, 'running');
    assert.equal(conversation.get(id)?.confirmation, null);
  });

  it('keeps what was written when it is stopped', () => {
    const { id } = conversation.begin('Why?');
    conversation.apply(id, event({ type: 'token', text: 'Half of' }));
    conversation.apply(
      id,
      event({ type: 'error', error: { code: 'cancelled', message: 'x', action: '' } }),
    );
    assert.equal(conversation.get(id)?.state, 'stopped');
    assert.equal(conversation.get(id)?.error, null);
    assert.equal(conversation.get(id)?.answer, 'Half of');
  });

  it('takes no event after the end, and none for an unknown entry', () => {
    const { id } = conversation.begin('Why?');
    const error = { code: 'engineCrashed', message: 'gone', action: 'again' } as const;
    conversation.fail(id, error);
    assert.deepEqual(conversation.get(id)?.error, error);
    assert.deepEqual(conversation.apply(id, event({ type: 'token', text: 'late' })), {
      kind: 'none',
    });
    conversation.fail(id, { code: 'cancelled', message: '', action: '' });
    assert.equal(conversation.get(id)?.state, 'failed');
    assert.equal(conversation.get(id)?.answer, '');
    assert.deepEqual(conversation.apply(99, resultEvent('?')), { kind: 'none' });
  });

  it('tells the model the earlier turns that have an answer, and only those', () => {
    const ended = (question: string, answer: string) => {
      const { id } = conversation.begin(question);
      conversation.apply(id, resultEvent(answer));
    };
    ended('one', 'first');
    conversation.fail(conversation.begin('two').id, { code: 'internal', message: '', action: '' });
    const stopped = conversation.begin('three');
    conversation.apply(stopped.id, event({ type: 'token', text: 'half' }));
    conversation.fail(stopped.id, { code: 'cancelled', message: '', action: '' });
    const asked = conversation.begin('four');
    ended('five', 'fifth');
    assert.deepEqual(conversation.turnsBefore(asked.id), [
      { question: 'one', answer: 'first' },
      { question: 'three', answer: 'half' },
    ]);
  });

  it('asks again in place', () => {
    const { id } = conversation.begin('Why?');
    conversation.apply(id, resultEvent('wrong', [exampleCitation()]));
    conversation.restart(id);
    const entry = conversation.get(id)!;
    assert.equal(entry.question, 'Why?');
    assert.equal(entry.state, 'running');
    assert.equal(entry.answer, '');
    assert.deepEqual(entry.citations, []);
    assert.equal(entry.stats, null);
    assert.equal(conversation.entries.length, 1);
  });

  it('never gives an id twice, not even after a new chat', () => {
    const first = conversation.begin('a').id;
    conversation.clear();
    assert.notEqual(conversation.begin('b').id, first);
    assert.equal(conversation.get(first), undefined);
  });
});
