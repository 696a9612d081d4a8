import assert from 'node:assert/strict';
import {
  confirmText,
  filesLine,
  formatBytes,
  formatCoverage,
  formatDuration,
  formatEstimate,
  formatPercent,
  partTimes,
  progressText,
  resultText,
  speculationText,
  statsLine,
  thinkingText,
  thoughtLabel,
  type Progress,
} from '../../../extension/status/format';
import { exampleStats } from '../chat/examples';

describe('status/format', () => {
  it('writes durations with the digits that matter', () => {
    const cases: [number, string][] = [
      [0, '0 ms'],
      [-5, '0 ms'],
      [34.4, '34 ms'],
      [99.6, '0.10 s'],
      [994, '0.99 s'],
      [999, '1.0 s'],
      [3234, '3.2 s'],
      [9960, '10 s'],
      [59_600, '1 min'],
      [65_000, '1 min 5 s'],
      [299_600, '5 min'],
      [840_000, '14 min'],
      [3_599_000, '1 h'],
      [7_500_000, '2 h 5 min'],
    ];
    for (const [ms, text] of cases) assert.equal(formatDuration(ms), text, `${ms} ms`);
  });

  it('writes shares without turning small ones into zero', () => {
    const cases: [number, string][] = [
      [0, '0%'],
      [0.00042, '0.042%'],
      [0.0093, '0.93%'],
      [0.0099, '0.99%'],
      [0.0142, '1.4%'],
      [0.0998, '10%'],
      [0.142, '14%'],
      [1, '100%'],
    ];
    for (const [share, text] of cases) assert.equal(formatPercent(share), text, `${share}`);
  });

  it('writes parts of a prefill and guessed tokens', () => {
    const times = {
      linearMs: 2400,
      expandMs: 90,
      stage1Ms: 80,
      stage2Ms: 70,
      stage3Ms: 900,
      auditMs: 5,
      restMs: 200,
    };
    assert.deepEqual(
      partTimes(times).map(({ name, ms }) => `${name} ${ms}`),
      'linear 2400,expand 90,stage 1 80,stage 2 70,stage 3 900,audit 5,rest 200'.split(','),
    );
    assert.equal(
      speculationText({ draftedTokens: 1200, acceptedTokens: 840 }),
      '840 of 1,200 guessed tokens were right (70%)',
    );
    assert.match(speculationText({ draftedTokens: 0, acceptedTokens: 0 }), /^0 of 0 .*\(0%\)/);
  });

  it('never calls a coverage below one 100%', () => {
    assert.equal(formatCoverage(0.9811), '98.1%');
    assert.equal(formatCoverage(0.99996), '99.99%');
    assert.equal(formatCoverage(0.9993), '99.93%');
    assert.equal(formatCoverage(1), '100%');
  });

  it('keeps a thought apart from the time to the first token', () => {
    assert.equal(thoughtLabel(340, true), 'Thinking… 0.3 s');
    assert.equal(thoughtLabel(4100, false), 'Thought for 4.1 s');
    assert.equal(thoughtLabel(65_000, false), 'Thought for 1 min 5 s');
    const stats = { ...exampleStats(), thinking: { ms: 4100, tokens: 1312 } };
    assert.match(statsLine(stats), /^TTFT 3\.2 s · .* · thought 4\.1 s · /);
    assert.doesNotMatch(statsLine(exampleStats()), /thought/);
    assert.equal(thinkingText(stats.thinking), '1,312 tokens in 4.1 s, after the first token');
  });

  it('writes sizes in binary units', () => {
    assert.equal(formatBytes(0), '0 B');
    assert.equal(formatBytes(1023), '1023 B');
    assert.equal(formatBytes(1024), '1.0 KiB');
    assert.equal(formatBytes(98 * 1024 * 1024 + 1), '98.0 MiB');
    assert.equal(formatBytes(400e9), '373 GiB');
  });

  it('names the phase, its share and the time left', () => {
    const progress = (some: Partial<Progress>): Progress => ({
      phase: 'prefill',
      ahead: 0,
      share: null,
      etaMs: null,
      perSecond: 0,
      ...some,
    });
    assert.equal(progressText(progress({ share: 0.4399, etaMs: 11_400 })), 'Prefill 43% · 12 s');
    assert.equal(progressText(progress({ share: 0.5, etaMs: 200 })), 'Prefill 50% · 1 s');
    assert.equal(progressText(progress({ phase: 'scan' })), 'Reading files');
    assert.equal(progressText(progress({ phase: 'queue', ahead: 2 })), 'Waiting for 2 questions');
    assert.equal(progressText(progress({ phase: 'queue', ahead: 1 })), 'Waiting for 1 question');
    assert.equal(progressText(progress({ phase: 'queue' })), 'Waiting');
    assert.equal(
      progressText(progress({ phase: 'decode', share: 0.2, perSecond: 8.42, etaMs: 9000 })),
      'Answering · 8.4 tok/s',
    );
  });

  it('sums an answer up in one line', () => {
    assert.equal(resultText(exampleStats()), 'TTFT 3.2 s · 41% attention');
    assert.equal(
      statsLine(exampleStats()),
      'TTFT 3.2 s · 41% attention · coverage 98.1% (p5 93.4%) · 6,312 tokens (4,096 reused) · 38 tok/s',
    );
    const dense = exampleStats();
    dense.attention = {
      ...dense.attention,
      density: 1,
      sparseDensity: null,
      coverageMean: null,
      coverageP5: null,
    };
    dense.reusedTokens = 0;
    assert.equal(statsLine(dense), 'TTFT 3.2 s · 100% attention · 6,312 tokens · 38 tok/s');
  });

  it('rounds predictions', () => {
    const cases: [number, string][] = [
      [1_000, '5 s'],
      [32_000, '30 s'],
      [88_000, '1 min 30 s'],
      [155_000, '3 min'],
      [842_000, '14 min'],
    ];
    for (const [ms, text] of cases) assert.equal(formatEstimate(ms), text, `${ms} ms`);
    assert.equal(confirmText(842_000, 118_000), 'Reading 118,000 tokens takes about 14 min.');
  });

  it('says what was read and what was not', () => {
    assert.equal(filesLine({ full: 12, path: 0, out: 0 }), 'Read all 12 files');
    assert.equal(filesLine({ full: 1, path: 0, out: 0 }), 'Read the only file');
    assert.equal(
      filesLine({ full: 37, path: 375, out: 0 }),
      'Read 37 of 412 files · 375 by path only',
    );
    assert.equal(filesLine({ full: 2, path: 0, out: 1 }), 'Read 2 of 3 files · 1 left out');
    assert.equal(filesLine({ full: 9, path: 0, out: 0 }, 'Reading'), 'Reading all 9 files');
  });
});
