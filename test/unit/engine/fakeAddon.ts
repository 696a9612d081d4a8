/**
 * An addon that plays its part without a model: one token a byte, a scripted answer, and a record
 * of what was asked of it.
 */
import { statSync, writeFileSync } from 'node:fs';
import type {
  Addon,
  GenerateResult,
  ModelSpec,
  NativeModel,
  NativeSession,
  Prompt,
  SessionEvent,
} from '../../../extension/engine/addon';
import type { CudaProbe, CudaState } from '../../../extension/engine/cudaProbe';
import type { AttentionStats, MemoryEstimate } from '../../../extension/engine/protocol';

export const attention: AttentionStats = {
  density: 0.5,
  sparseDensity: 0.2,
  coverageMean: 0.97,
  coverageP5: 0.9,
  layers: [{ density: 0.2, heads: [0.1, 0.3] }],
};
export const memory = { weightBytes: 1000, kvBytes: 200, scratchBytes: 30, fixedBytes: 0 };

/** What asking for GPUs finds: by default none. */
export function fakeCuda(state: Partial<CudaState> = {}): CudaProbe {
  const { usable = [], refused = [] } = state;
  const none = { message: 'No NVIDIA GPU was found.', action: '', fixable: false };
  const { problem = usable.length > 0 ? null : none } = state;
  const known = async () => ({ usable, refused, problem });
  return { state: known, fresh: known };
}

export interface FakeSettings {
  spec: Partial<ModelSpec>;
  /** Texts that `generate` emits. */
  texts: string[];
  /** Context that fits into memory. */
  largestContextTokens: number;
  /** The same on each GPU; what is thrown instead of an estimate. */
  gpus: (number | Error)[];
  /** Thrown instead of making a session on a GPU. */
  gpuSessionError: Error | null;
  predictedMsPerToken: number;
  /** Of a scored prompt, what was not computed. */
  reusedShare: number;
  /** Called at the end of the n-th `score`. */
  afterScores: (count: number) => void;
  /** `generate` reuses what was generated for before, until a reset. */
  caches: boolean;
  /** `generate` and `score` wait for `cancel`. */
  hang: boolean;
  openError: Error | null;
  restoreError: Error | null;
  loadMs: number;
}

export class FakeAddon {
  readonly calls: string[] = [];
  readonly prompts: Prompt[] = [];
  readonly options: Record<string, unknown>[] = [];
  settings: FakeSettings = {
    spec: {},
    texts: ['Hel', 'lo'],
    largestContextTokens: 1 << 20,
    gpus: [],
    gpuSessionError: null,
    predictedMsPerToken: 1,
    reusedShare: 0,
    afterScores: () => undefined,
    caches: false,
    hang: false,
    openError: null,
    restoreError: null,
    loadMs: 0,
  };

  readonly addon: Addon = {
    machine: () => ({
      cpuFeatures: ['avx2'],
      kernels: { attention: 'avx2', linear: 'ggml test' },
      totalMemoryBytes: 1 << 30,
      availableMemoryBytes: 1 << 29,
      physicalCores: 3,
    }),
    openModel: async (path) => {
      this.calls.push(`openModel ${path.split('/').at(-1)}`);
      if (this.settings.openError) throw this.settings.openError;
      return this.model(path);
    },
    cudaDevices: () => {
      throw new Error('Only the probe asks for GPUs.');
    },
    openSynthetic: (name, { weights }) => {
      this.calls.push(`openSynthetic ${name} ${weights}`);
      return this.model(name);
    },
  };

  private model(path: string): NativeModel {
    const spec: ModelSpec = {
      path,
      name: 'fake',
      architecture: 'llama',
      layers: 1,
      heads: 2,
      kvHeads: 1,
      headDim: 64,
      contextTokens: 8192,
      fileType: 'F32',
      chatTemplate:
        '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}',
      bosText: '<|im_start|>',
      eosText: '<|im_end|>',
      addBos: false,
      weightBytes: memory.weightBytes,
      vocabulary: 256,
      ...this.settings.spec,
    };
    return {
      spec,
      tokenize: async (pieces) =>
        pieces.map(({ text }) => {
          const bytes = typeof text === 'string' ? Buffer.from(text) : text;
          return Int32Array.from(bytes);
        }),
      detokenize: async (tokens) => Uint8Array.from(tokens),
      estimateMemory: ({ backend, device, contextTokens, kvCache }): MemoryEstimate => {
        const { gpus } = this.settings;
        const most = backend === 'cpu' ? this.settings.largestContextTokens : gpus[device]!;
        if (typeof most !== 'number') throw most;
        const largestContextTokens = most * (kvCache === 'q8' ? 1.5 : 1);
        return {
          ...memory,
          contextTokens,
          availableBytes: 1 << 29,
          fits: contextTokens <= largestContextTokens,
          largestContextTokens,
        };
      },
      createSession: async (options, onProgress) => {
        this.calls.push('createSession');
        this.options.push({ ...options });
        if (options.backend === 'cuda' && this.settings.gpuSessionError) {
          throw this.settings.gpuSessionError;
        }
        onProgress(500, 1000);
        if (this.settings.loadMs > 0) {
          await new Promise((resolve) => setTimeout(resolve, this.settings.loadMs));
        }
        onProgress(1000, 1000);
        return this.session(options.contextTokens);
      },
      dispose: () => void this.calls.push('dispose model'),
    };
  }

  private session(contextTokens: number): NativeSession {
    let reusable = 0;
    let cached = 0;
    let stop: ((error: Error) => void) | null = null;
    const hanging = () =>
      new Promise<never>((_resolve, reject) => {
        stop = reject;
      });
    return {
      contextTokens,
      plan: async (prompt) => ({
        promptTokens: prompt.tokens.length,
        reusedTokens: Math.min(reusable, prompt.tokens.length - 1),
        computedTokens: prompt.tokens.length,
        predictedPrefillMs: prompt.tokens.length * this.settings.predictedMsPerToken,
      }),
      generate: async (prompt, options, onEvent): Promise<GenerateResult> => {
        this.calls.push('generate');
        this.prompts.push(prompt);
        this.options.push({ ...options });
        const total = prompt.tokens.length;
        const reused = this.settings.caches ? cached : 0;
        cached = total;
        const event = (done: number): SessionEvent => ({
          type: 'prefill',
          done,
          total,
          tokensPerSecond: 10,
          etaMs: 5,
        });
        onEvent(event(1));
        if (this.settings.hang) await hanging();
        onEvent(event(total));
        onEvent({ type: 'prefilled' });
        for (const text of this.settings.texts) onEvent({ type: 'text', text });
        return {
          promptTokens: total,
          reusedTokens: reused,
          computedTokens: total - reused,
          generatedTokens: this.settings.texts.length,
          prefillMs: 10,
          decodeMs: 5,
          prefillTokensPerSecond: 100,
          decodeTokensPerSecond: 20,
          stopReason: 'end',
          attention,
          memory,
          speculation: null,
          times: null,
          devicePeakBytes: null,
        };
      },
      score: async (prompt, options, onEvent) => {
        this.calls.push('score');
        this.prompts.push(prompt);
        this.options.push({ ...options });
        if (this.settings.hang) await hanging();
        const total = prompt.tokens.length;
        onEvent({ type: 'prefill', done: total, total, tokensPerSecond: 10, etaMs: 0 });
        this.settings.afterScores(this.calls.filter((call) => call === 'score').length);
        return {
          nll: 2,
          accuracy: 0.5,
          computedTokens: total * (1 - this.settings.reusedShare),
          prefillMs: 10,
          attention,
          ...(options.againstDense ? { kl: 0.001, top1Agreement: 0.99 } : {}),
        };
      },
      save: async (path, rows, onProgress) => {
        this.calls.push(`save ${rows}`);
        if (this.settings.hang) await hanging();
        onProgress(rows, rows);
        writeFileSync(path, 'x'.repeat(rows));
        return { tokens: rows, bytes: rows };
      },
      savedBytes: (rows) => rows,
      restore: async (path, onProgress) => {
        this.calls.push('restore');
        if (this.settings.restoreError) throw this.settings.restoreError;
        const bytes = statSync(path).size;
        onProgress(bytes, bytes);
        reusable = bytes;
        return { tokens: bytes, bytes };
      },
      calibrate: async (texts, params, target, onEvent) => {
        this.calls.push('calibrate');
        this.options.push({ texts, params, target });
        onEvent({ type: 'prefill', done: 1, total: 2, tokensPerSecond: 10, etaMs: 5 });
        if (this.settings.hang) await hanging();
        return {
          chosen: { density: 0.2, coverage: 0.9, headEpsilons: [0.01, 0.02] },
          plain: { density: 0.2, coverage: 0.95, headEpsilons: [0.003, 0.003] },
          kl: target.kl === null ? null : target.kl / 2,
        };
      },
      use: (calibration) => {
        this.calls.push('use');
        this.options.push(calibration);
      },
      cancel: () => {
        this.calls.push('cancel');
        stop?.(Object.assign(new Error('stopped'), { code: 'cancelled', action: '' }));
      },
      reset: () => {
        cached = 0;
        this.calls.push('reset');
      },
      dispose: () => void this.calls.push('dispose session'),
    };
  }
}
