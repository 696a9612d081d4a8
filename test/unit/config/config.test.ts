import assert from 'node:assert/strict';
import os from 'node:os';
import path from 'node:path';
import {
  numberSettings,
  readGpuIdleMs,
  readModelSettings,
  readSettings,
} from '../../../extension/config';
import { EngineError } from '../../../extension/engine/errors';
import { defaultParams, startingParams } from '../../../extension/engine/params';
import { defaultSampling } from '../../../extension/engine/sampling';

const read = (values: Record<string, unknown>) => (key: string) => values[key];

function refusal(values: Record<string, unknown>): EngineError {
  try {
    readSettings(read(values));
  } catch (error) {
    assert.ok(error instanceof EngineError);
    assert.equal(error.code, 'invalidParams');
    assert.notEqual(error.action, '');
    return error;
  }
  assert.fail(`accepted ${JSON.stringify(values)}`);
}

describe('config', () => {
  it('has a default for everything', () => {
    assert.deepEqual(readSettings(read({})), {
      modelPath: '',
      modelsFolder: '',
      backend: 'auto',
      cudaDevice: -1,
      cudaReleaseAfterMinutes: 15,
      threads: 0,
      contextTokens: 0,
      kvCache: 'bf16',
      calibration: 'auto',
      answerTokens: 512,
      thinking: false,
      confirmAboveSeconds: 30,
      savedSessionsGB: 8,
      params: defaultParams,
      sampling: defaultSampling,
    });
  });

  it('gives the GPU back after a time that is always usable', () => {
    assert.equal(readGpuIdleMs(read({})), 15 * 60_000);
    assert.equal(readGpuIdleMs(read({ 'cuda.releaseAfterMinutes': 0.5 })), 30_000);
    assert.equal(readGpuIdleMs(read({ 'cuda.releaseAfterMinutes': 0 })), 0);
    assert.equal(readGpuIdleMs(read({ 'cuda.releaseAfterMinutes': 'soon' })), 15 * 60_000);
  });

  it('takes values in their ranges', () => {
    const settings = readSettings(
      read({
        model: ' /models/a.gguf ',
        modelsFolder: '~/models',
        backend: 'cuda',
        'cuda.device': 1,
        threads: 8,
        contextTokens: 32768,
        answerTokens: 1,
        thinking: true,
        'sparsity.policy': 'dense',
        'sparsity.epsilon': 0.3,
        'sparsity.segmentRows': 0,
        'sampling.temperature': 0.7,
        'sampling.topK': 40,
      }),
    );
    assert.equal(settings.modelPath, '/models/a.gguf');
    assert.equal(settings.modelsFolder, path.join(os.homedir(), 'models'));
    assert.equal(settings.backend, 'cuda');
    assert.equal(settings.cudaDevice, 1);
    assert.equal(settings.threads, 8);
    assert.equal(settings.thinking, true);
    assert.equal(settings.params.policy, 'dense');
    assert.equal(settings.params.epsilon, 0.3);
    assert.equal(settings.params.segmentRows, 0);
    assert.deepEqual(settings.sampling, { ...defaultSampling, temperature: 0.7, topK: 40 });
  });

  it('takes the preset paper, which what is set changes', () => {
    const paper = readSettings(read({ 'sparsity.policy': 'paper', 'sparsity.sampleStride': 8 }));
    assert.deepEqual(paper.params, { ...startingParams('paper'), sampleStride: 8 });
    assert.equal(paper.params.policy, 'mass');
    const mass = readSettings(read({ 'sparsity.policy': 'mass' }));
    assert.deepEqual(mass.params, { ...defaultParams, policy: 'mass' });
    assert.match(refusal({ 'sparsity.policy': 'papers' }).message, /policy = papers/);
  });

  it('takes a type of KV cache, and no other', () => {
    assert.equal(readSettings(read({ kvCache: 'q8' })).kvCache, 'q8');
    assert.equal(readSettings(read({ calibration: 'off' })).calibration, 'off');
    assert.match(refusal({ calibration: 'x' }).message, /calibration = "x" .* auto, off/);
    assert.match(refusal({ kvCache: 'q4' }).message, /longsight\.kvCache = "q4" .* bf16, q8/);
  });

  it('names a wrong setting, its value and the range', () => {
    assert.match(
      refusal({ backend: 'gpu' }).message,
      /longsight\.backend = "gpu" .*auto, cuda, cpu/,
    );
    assert.match(
      refusal({ 'cuda.device': -2 }).message,
      /longsight\.cuda\.device = -2 .* -1 to 63/,
    );
    assert.match(refusal({ threads: -1 }).message, /longsight\.threads = -1 .* 0 to 1024/);
    assert.match(refusal({ answerTokens: 0 }).message, /longsight\.answerTokens = 0/);
    assert.match(refusal({ thinking: 'on' }).message, /longsight\.thinking = "on"/);
    assert.match(refusal({ contextTokens: '8k' }).message, /longsight\.contextTokens = "8k"/);
    assert.match(
      refusal({ 'sampling.topP': 0 }).message,
      /longsight\.sampling\.topP = 0 .* above 0/,
    );
    assert.match(refusal({ 'sparsity.epsilon': 1 }).message, /longsight\.sparsity\.epsilon = 1 /);
    assert.match(refusal({ 'sparsity.segmentRows': 300 }).message, /segmentRows = 300/);
    assert.match(refusal({ model: 'models/a.gguf' }).message, /not an absolute path/);
    assert.match(refusal({ modelsFolder: 3 }).message, /longsight\.modelsFolder = 3/);
  });

  it('lets a model be chosen while the setting is unusable', () => {
    assert.deepEqual(readModelSettings(read({ model: 'relative.gguf', threads: 'x' })), {
      modelPath: '',
      modelsFolder: '',
    });
  });

  it('agrees with its ranges', () => {
    for (const [key, range] of Object.entries(numberSettings)) {
      for (const value of [range.min, range.max]) readSettings(read({ [key]: value }));
      refusal({ [key]: range.min - 1 });
      refusal({ [key]: range.max + 1 });
    }
  });
});
