import assert from 'node:assert/strict';
import { Conversation } from '../../../extension/chat/conversation';
import { modelItems, modelName } from '../../../extension/commands/modelItems';
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
  });

  it('ends with time to first token and density', () => {
    const { id } = conversation.begin('Why?');
    conversation.apply(id, resultEvent('So.'));
    assert.equal(status().text, '$(telescope) TTFT 3.2 s · 41% attention');
    assert.equal(status().failed, false);
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
    assert.ok(status().failed);
    assert.deepEqual(status().tooltip, ['No model is chosen. Select one.']);
  });

  it('is calm after a stop', () => {
    const { id } = conversation.begin('Why?');
    conversation.fail(id, { code: 'cancelled', message: '', action: '' });
    assert.equal(status().text, '$(debug-stop) Stopped');
    assert.equal(status().failed, false);
  });
});

describe('commands/modelItems', () => {
  const found = [
    { path: '/m/a.gguf', name: 'a', sizeBytes: 2048, source: 'Models folder' },
    { path: '/l/b.gguf', name: 'b', sizeBytes: 4096, source: 'LM Studio' },
    { path: '/m/c.gguf', name: 'c', sizeBytes: 1024, source: 'Models folder' },
  ];

  it('groups by source and marks the chosen model', () => {
    const lines = modelItems(found, '/l/b.gguf').map((item) =>
      item.kind === 'source' ? `-- ${item.label}` : `${item.label}${item.current ? ' *' : ''}`,
    );
    assert.deepEqual(lines, ['-- Models folder', 'a', 'c', '-- LM Studio', 'b *']);
  });

  it('keeps a chosen model in the list that was not found', () => {
    const [source, model] = modelItems(found, '/else/d.gguf');
    assert.deepEqual(source, { kind: 'source', label: 'Chosen' });
    assert.equal(model?.label, 'd.gguf');
  });

  it('names a model by its file', () => {
    assert.equal(modelName('/m/SmolLM2-135M.Q4_1.gguf'), 'SmolLM2-135M.Q4_1');
    assert.equal(modelName(''), '');
  });
});
