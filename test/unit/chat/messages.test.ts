import assert from 'node:assert/strict';
import { parseFromChat } from '../../../extension/chat/messages';
import { uniqueNames } from '../../../extension/chat/uniqueNames';

describe('chat/messages', () => {
  it('takes every message that the view sends', () => {
    const messages = [
      { type: 'ready' },
      { type: 'selectModel' },
      { type: 'openFolder' },
      { type: 'ask', question: 'Why?' },
      { type: 'stop', id: 1 },
      { type: 'copy', id: 1 },
      { type: 'showStats', id: 1 },
      { type: 'choose', id: 1, choice: 'fewerFiles' },
      { type: 'openCitation', id: 1, index: 0 },
      { type: 'remedy', id: 1, remedy: 'showLog' },
    ];
    for (const message of messages) assert.deepEqual(parseFromChat(message), message);
  });

  it('takes nothing else', () => {
    const others: unknown[] = [
      undefined,
      null,
      'ready',
      {},
      { type: 'run', command: 'x' },
      { type: 'ask' },
      { type: 'ask', question: 7 },
      { type: 'stop', id: '1' },
      { type: 'stop', id: 1.5 },
      { type: 'choose', id: 1, choice: 'always' },
      { type: 'openCitation', id: 1, path: '/etc/passwd' },
      { type: 'remedy', id: 1, remedy: 'toString' },
    ];
    for (const other of others)
      assert.equal(parseFromChat(other), undefined, JSON.stringify(other));
  });

  it('drops properties that do not belong to a message', () => {
    assert.deepEqual(parseFromChat({ type: 'stop', id: 1, path: '/x' }), { type: 'stop', id: 1 });
  });
});

describe('chat/uniqueNames', () => {
  it('numbers repetitions and skips numbers that are taken', () => {
    assert.deepEqual(uniqueNames(['app', 'lib', 'app']), ['app', 'lib', 'app-2']);
    assert.deepEqual(uniqueNames(['app', 'app-2', 'app']), ['app', 'app-2', 'app-3']);
    assert.deepEqual(uniqueNames(['a/b', 'a-b']), ['a-b', 'a-b-2']);
  });
});
