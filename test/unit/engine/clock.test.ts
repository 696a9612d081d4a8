import assert from 'node:assert/strict';
import { FirstTokenClock } from '../../../extension/engine/clock';

describe('engine/clock', () => {
  let at = 0;
  const now = () => at;
  const sum = (clock: FirstTokenClock) =>
    Object.values(clock.times().phases).reduce((total, ms) => total + ms, 0);

  it('gives each phase the time until the next begins', () => {
    at = 1000;
    const clock = new FirstTokenClock(now);
    for (const [ms, phase] of [
      [5, 'load'],
      [100, 'scan'],
      [20, 'tokenize'],
      [30, 'prefill'],
      [4000, 'firstToken'],
    ] as const) {
      at += ms;
      clock.phase(phase);
    }
    at += 12;
    clock.firstToken();
    at += 999;
    clock.firstToken();
    clock.phase('decode');
    assert.deepEqual(clock.times(), {
      ttftMs: 4167,
      phases: {
        queueMs: 5,
        loadMs: 100,
        scanMs: 20,
        tokenizeMs: 30,
        prefillMs: 4000,
        firstTokenMs: 12,
      },
    });
  });

  it('ends before a thought', () => {
    at = 0;
    const clock = new FirstTokenClock(now);
    clock.phase('prefill');
    at = 10;
    clock.phase('firstToken');
    at = 12;
    clock.phase('thinking');
    at = 5000;
    clock.phase('decode');
    clock.firstToken();
    assert.equal(clock.times().ttftMs, 12);
    assert.equal(sum(clock), 12);
  });

  it('does not count the time in which a person is asked', () => {
    at = 0;
    const clock = new FirstTokenClock(now);
    clock.phase('load');
    clock.phase('tokenize');
    at = 10;
    clock.pause();
    at = 60_000;
    clock.resume();
    at += 5;
    clock.phase('prefill');
    at += 100;
    clock.firstToken();
    assert.equal(clock.times().ttftMs, 115);
    assert.equal(clock.times().phases.tokenizeMs, 15);
  });

  it('ends a pause that nobody ended, without counting it', () => {
    at = 0;
    const clock = new FirstTokenClock(now);
    clock.pause();
    at = 50;
    clock.phase('prefill');
    at = 60;
    clock.firstToken();
    assert.equal(clock.times().ttftMs, 10);
  });

  it('sums to the total when phases are missing, repeated or come back', () => {
    at = 0;
    const clock = new FirstTokenClock(now);
    at = 7;
    clock.phase('scan');
    at = 9;
    clock.phase('load');
    at = 11;
    clock.phase('scan');
    at = 20;
    clock.phase('prefill');
    at = 33;
    clock.phase('decode');
    at = 50;
    assert.equal(clock.times().ttftMs, 33);
    assert.equal(sum(clock), 33);
    assert.equal(clock.times().phases.scanMs, 13);
  });
});
