import assert from 'node:assert/strict';
import { mock } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import type { Engine } from '../../../extension/engine/client';
import { cancelled, EngineError } from '../../../extension/engine/errors';
import { againAfterMs, idleMs, IdleSaver } from '../../../extension/engine/idleSaver';

describe('engine/idleSaver', () => {
  const place = { file: '/cache/a.session', mostFolderBytes: 10 };
  let nowMs: number;
  let saves: unknown[];
  let outcome: Promise<{ saved: boolean }>;
  let log: string[];
  let saver: IdleSaver;

  beforeEach(() => {
    mock.timers.enable({ apis: ['setTimeout'] });
    nowMs = 0;
    saves = [];
    log = [];
    outcome = Promise.resolve({ saved: true });
    const engine = { save: (body: unknown) => (saves.push(body), { result: outcome }) };
    saver = new IdleSaver(
      engine as unknown as Pick<Engine, 'save'>,
      (text) => log.push(text),
      () => nowMs,
    );
  });
  afterEach(() => mock.timers.reset());

  const pass = async (ms: number) => {
    nowMs += ms;
    mock.timers.tick(ms);
    await turn();
  };

  it('saves once nobody has asked for a while', async () => {
    saver.ended(place);
    await pass(idleMs - 1);
    assert.deepEqual(saves, []);
    await pass(1);
    assert.deepEqual(saves, [place]);
    await pass(10 * againAfterMs);
    assert.equal(saves.length, 1);
  });

  it('waits for the end of the next question', async () => {
    saver.ended(place);
    await pass(idleMs - 1);
    saver.asked();
    await pass(10 * idleMs);
    assert.deepEqual(saves, []);
    saver.ended(place);
    await pass(idleMs);
    assert.equal(saves.length, 1);
  });

  it('writes the same file not too often, and another one at once', async () => {
    saver.ended(place);
    await pass(idleMs);
    await pass(1000);
    saver.ended(place);
    await pass(againAfterMs - 1001);
    assert.equal(saves.length, 1);
    await pass(1);
    assert.equal(saves.length, 2);
    saver.ended({ ...place, file: '/cache/b.session' });
    await pass(idleMs);
    assert.equal(saves.length, 3);
  });

  it('tries again soon when nothing was written', async () => {
    for (const result of [
      Promise.resolve({ saved: false }),
      Promise.reject(cancelled()),
      Promise.reject(new EngineError('writeFailed', 'Disk full.', '')),
    ]) {
      result.catch(() => undefined);
      outcome = result;
      saver.ended(place);
      await pass(idleMs);
    }
    assert.equal(saves.length, 3);
    assert.deepEqual(log, ['The session was not saved: Disk full.']);
  });

  it('does nothing when sessions are not kept', async () => {
    saver.ended({ file: '', mostFolderBytes: 0 });
    await pass(10 * idleMs);
    assert.deepEqual(saves, []);
  });
});
