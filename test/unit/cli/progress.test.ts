import assert from 'node:assert/strict';
import { ProgressLine } from '../../../extension/cli/progress';
import type { Event, Phase } from '../../../extension/engine/protocol';

const address = { sessionId: 's', requestId: 'r' };
const phase = (name: Phase): Event => ({ type: 'phase', ...address, phase: name });
const prefill = (done: number): Event => ({
  type: 'progress',
  ...address,
  phase: 'prefill',
  done,
  total: 100,
  unit: 'tokens',
  perSecond: 50,
  etaMs: (100 - done) * 20,
});

describe('cli/progress', () => {
  let written: string;
  let now: number;
  const line = (terminal: boolean, thoughtsShown = false) =>
    new ProgressLine(
      (text) => (written += text),
      terminal,
      thoughtsShown,
      () => now,
    );
  beforeEach(() => {
    written = '';
    now = 0;
  });

  it('rewrites one line of a terminal and takes it away', () => {
    const progress = line(true);
    progress.show(phase('prefill'));
    now = 200;
    progress.show(prefill(43));
    assert.match(written, /\r\x1b\[2KPrefill 43% · 2 s · 50 tok\/s$/);
    assert.ok(!written.includes('\n'));
    progress.show(phase('decode'));
    assert.ok(written.endsWith('\r\x1b[2K'));
    const length = written.length;
    progress.clear();
    assert.equal(written.length, length);
  });

  it('writes few plain lines where nothing can be rewritten', () => {
    const progress = line(false);
    progress.show(phase('prefill'));
    for (let done = 1; done <= 100; done++) {
      now += 300;
      progress.show(prefill(done));
    }
    const lines = written.trimEnd().split('\n');
    assert.ok(lines.length >= 3 && lines.length <= 5, written);
    assert.ok(!written.includes('\x1b') && !written.includes('\r'));
  });

  it('ignores progress of another phase', () => {
    const progress = line(true);
    progress.show(phase('firstToken'));
    now = 1000;
    const before = written;
    progress.show(prefill(5));
    assert.equal(written, before);
  });
});
