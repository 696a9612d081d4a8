import assert from 'node:assert/strict';
import { Conversation } from '../../../extension/chat/conversation';
import { statusText } from '../../../extension/status/statusText';
import { event, resultEvent } from '../chat/examples';

describe('status/statusText', () => {
  let conversation: Conversation;
  const status = () => statusText(conversation.entries);
  beforeEach(() => (conversation = new Conversation()));

  it('invites before the first question', () => {
    assert.equal(status().text, '$(telescope) Longsight');
    assert.equal(status().label, 'Longsight');
  });

  it('shows phase and time left of the running question', () => {
    const { id } = conversation.begin('Where is\n the policy?');
    conversation.begin('And then?');
    conversation.apply(
      id,
      event({
        type: 'progress',
        phase: 'prefill',
        done: 43,
        total: 100,
        unit: 'tokens',
        perSecond: 600,
        etaMs: 11_900,
      }),
    );
    assert.equal(status().text, '$(sync~spin) Prefill 43% · 12 s');
    assert.equal(status().label, 'Longsight: Prefill 43% · 12 s');
    assert.ok(status().tooltip.includes('Longsight: Where is the policy?'));
    assert.ok(status().tooltip.includes('600 tok/s'));
    assert.ok(status().tooltip.includes('1 more question waits.'));
  });

  it('asks before a long prefill', () => {
    const { id } = conversation.begin('Why?');
    conversation.apply(
      id,
      event({
        type: 'confirm',
        predictedPrefillMs: 840_000,
        computedTokens: 118_000,
        suggestedBudgetTokens: 0,
      }),
    );
    assert.equal(status().text, '$(question) About 14 min: start?');
    assert.equal(status().opens, 'chat');
  });

  it('ends with time to first token and density', () => {
    const { id } = conversation.begin('Why?');
    conversation.apply(id, resultEvent('So.'));
    assert.equal(status().text, '$(telescope) TTFT 3.2 s · 41% attention');
    assert.equal(status().opens, 'stats');
    assert.ok(status().tooltip.some((line) => line.includes('16% where it was sparse')));
    assert.ok(status().tooltip.some((line) => line.includes('4,096 tokens reused')));
  });

  it('says that and why a question failed', () => {
    const { id } = conversation.begin('Why?');
    conversation.fail(id, {
      code: 'noModel',
      message: 'No model is chosen.',
      action: 'Select one.',
    });
    assert.equal(status().text, '$(error) Longsight failed');
    assert.deepEqual(status().tooltip, [
      'No model is chosen. Select one.',
      'Click to open the chat.',
    ]);
    assert.equal(status().opens, 'chat');
  });

  it('is calm after a stop', () => {
    const { id } = conversation.begin('Why?');
    conversation.fail(id, { code: 'cancelled', message: '', action: '' });
    assert.equal(status().text, '$(debug-stop) Stopped');
  });
});
