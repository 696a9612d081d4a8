import assert from 'node:assert/strict';
import {
  checkParam,
  defaultParams,
  kebabCase,
  paramFields,
  rangeText,
  requireValidParams,
  startingParams,
} from '../../../extension/engine/params';

const field = (name: string) => paramFields.find((candidate) => candidate.name === name)!;
const ok = (name: string, value: unknown) => checkParam(field(name), value) === undefined;

describe('engine/params', () => {
  it('has the defaults of the specification', () => {
    assert.deepEqual(
      { ...defaultParams },
      {
        policy: 'peak',
        alpha: 0.95,
        epsilon: 0.003,
        scoreDims: 'slowHalf',
        sampleStride: 8,
        segmentRows: 2048,
        windowTokens: 256,
        windowFraction: 0,
        sinkTokens: 16,
        denseBelowTokens: 4096,
        maxListShare: 0.6,
        auditRows: 8,
      },
    );
    requireValidParams({ ...defaultParams });
  });

  it('knows open and closed ends of ranges', () => {
    assert.ok(!ok('alpha', 0) && ok('alpha', 1) && ok('alpha', 0.0001) && !ok('alpha', 1.0001));
    assert.ok(ok('epsilon', 0) && !ok('epsilon', 1) && ok('epsilon', 0.999) && !ok('epsilon', -1));
    assert.ok(ok('sampleStride', 1) && ok('sampleStride', 64) && !ok('sampleStride', 65));
    assert.ok(!ok('sampleStride', 0) && !ok('sampleStride', 2.5));
    assert.ok(ok('windowFraction', 0.5) && !ok('windowFraction', 0.51));
  });

  it('takes segmentRows as a multiple of 128, or 0', () => {
    assert.ok(ok('segmentRows', 0) && ok('segmentRows', 256) && ok('segmentRows', 8192));
    assert.ok(!ok('segmentRows', 128) && !ok('segmentRows', 300) && !ok('segmentRows', 8320));
  });

  it('takes no value of another kind', () => {
    for (const name of ['alpha', 'sampleStride', 'policy']) {
      for (const value of [NaN, Infinity, '', null, undefined, {}, '8', true]) {
        assert.ok(!ok(name, value), `${name} = ${String(value)}`);
      }
    }
  });

  it('names the value and the range', () => {
    const message = checkParam(field('segmentRows'), 300)!;
    assert.match(message, /segmentRows = 300/);
    assert.match(message, /256 to 8192, a multiple of 128, or 0/);
    assert.match(checkParam(field('policy'), 'sparse')!, /policy = sparse .* dense, peak, mass/);
    assert.equal(rangeText(field('alpha')), 'above 0, at most 1');
  });

  it('starts from the values of the paper for the preset', () => {
    const paper = startingParams('paper');
    requireValidParams(paper);
    assert.deepEqual(paper, {
      ...defaultParams,
      policy: 'mass',
      alpha: 0.95,
      sampleStride: 20,
      windowFraction: 0.08,
      windowTokens: 128,
      sinkTokens: 0,
      segmentRows: 0,
      denseBelowTokens: 0,
    });
    for (const policy of ['peak', undefined]) {
      assert.deepEqual(startingParams(policy), { ...defaultParams });
    }
  });

  it('writes flags in kebab case', () => {
    assert.equal(kebabCase('denseBelowTokens'), 'dense-below-tokens');
    assert.equal(kebabCase('policy'), 'policy');
  });
});
