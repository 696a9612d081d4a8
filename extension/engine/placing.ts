/** Where a model computes, and how large its context is there. */
import type { CudaDevice, NativeModel, Place } from './addon';
import type { CudaProbe } from './cudaProbe';
import { EngineError, invalidParams, toErrorInfo } from './errors';
import {
  anyDevice,
  totalBytes,
  type ErrorCode,
  type KvCacheType,
  type MemoryEstimate,
  type ModelRequest,
  type SampleAttentionParams,
} from './protocol';

export interface SessionNeed {
  params: SampleAttentionParams;
  ropeBaseScale: number;
  /** The KV cache must hold at least this many tokens; 0 = as many as the request says. */
  minTokens: number;
}

export interface Placing {
  place: Place;
  /** `CPU`, or the name of the GPU. */
  device: string;
  contextTokens: number;
  /** Why `auto` took the CPU, when a person can change that; '' otherwise. */
  fallback: string;
  /** The reason may be gone by the next question: memory of the GPU that others have taken. */
  passing: boolean;
}

// Less than this holds no question about a workspace.
const smallestContextTokens = 512;
// A GPU that cannot hold this much of a workspace is left for the CPU's larger context.
const leastGpuContextTokens = 8192;

/**
 * The place that the request asks for, and the size of the KV cache in tokens, within the model's
 * context and the memory there. `auto` takes a GPU where one works and has the memory, else the CPU.
 */
export async function choosePlacing(
  model: NativeModel,
  request: ModelRequest,
  need: SessionNeed,
  cuda: CudaProbe,
): Promise<Placing> {
  const wanted = wantedContext(model, request, need);
  if (request.backend === 'cpu') return onCpu(model, request, need, wanted);
  const found = await onGpu(model, request, need, wanted, cuda);
  if (!('error' in found)) return found;
  if (request.backend === 'cuda') throw found.error;
  return asFallback(onCpu(model, request, need, wanted), found);
}

/** The place for `auto` when the GPU has refused what it was chosen for. */
export function placingWithout(
  refusal: EngineError,
  model: NativeModel,
  request: ModelRequest,
  need: SessionNeed,
): Placing {
  const wanted = wantedContext(model, request, need);
  return asFallback(onCpu(model, request, need, wanted), refusalOf(refusal));
}

/** Errors after which `auto` goes on with the CPU. */
export function isGpuRefusal(error: unknown): boolean {
  return gpuRefusals.includes(toErrorInfo(error).code);
}

const gpuRefusals: readonly ErrorCode[] = [
  'deviceUnavailable',
  'notEnoughMemory',
  'unsupportedArchitecture',
  'unsupportedTensorType',
];

interface Refusal {
  error: EngineError;
  fixable: boolean;
  passing: boolean;
}

function refusalOf(error: EngineError, fixable = true): Refusal {
  return { error, fixable, passing: error.code === 'notEnoughMemory' };
}

function asFallback(placing: Placing, { error, fixable, passing }: Refusal): Placing {
  return { ...placing, fallback: fixable ? error.message : '', passing };
}

function onCpu(
  model: NativeModel,
  request: ModelRequest,
  need: SessionNeed,
  wanted: number,
): Placing {
  const place: Place = { backend: 'cpu', device: 0 };
  const contextTokens = fittingContext(model, request, need, wanted, place, smallestContextTokens);
  return { place, device: 'CPU', contextTokens, fallback: '', passing: false };
}

/** On the first GPU that has the memory for all of `wanted`, else on the one that has most. */
async function onGpu(
  model: NativeModel,
  request: ModelRequest,
  need: SessionNeed,
  wanted: number,
  cuda: CudaProbe,
): Promise<Placing | Refusal> {
  const { usable, problem } = await cuda.state();
  if (problem !== null) {
    const action = problem.action || 'Use the backend cpu or auto.';
    const error = new EngineError('deviceUnavailable', problem.message, action);
    return refusalOf(error, problem.fixable);
  }
  const candidates = candidatesOf(usable, request.device);
  if (candidates.length === 0) return refusalOf(noSuchDevice(usable, request.device));
  let best: Placing | Refusal | null = null;
  for (const { index, name } of candidates) {
    const place: Place = { backend: 'cuda', device: index };
    try {
      const least = Math.min(wanted, leastGpuContextTokens);
      const contextTokens = fittingContext(model, request, need, wanted, place, least, name);
      const placing = { place, device: name, contextTokens, fallback: '', passing: false };
      if (contextTokens === wanted) return placing;
      if (best === null || 'error' in best || best.contextTokens < contextTokens) best = placing;
    } catch (error) {
      if (!isGpuRefusal(error)) throw error;
      const { code, message, action } = toErrorInfo(error);
      best ??= refusalOf(new EngineError(code, message, action));
    }
  }
  return best!;
}

/** Most free memory first. */
function candidatesOf(usable: readonly CudaDevice[], device: number): CudaDevice[] {
  return device === anyDevice
    ? [...usable].sort((a, b) => b.freeBytes - a.freeBytes)
    : usable.filter(({ index }) => index === device);
}

function noSuchDevice(usable: readonly CudaDevice[], device: number): EngineError {
  const list = usable.map(({ index, name }) => `${index} (${name})`).join(', ');
  return new EngineError(
    'deviceUnavailable',
    `There is no usable GPU ${device}; usable: ${list}.`,
    'Choose one of these, or -1 for the one with the most free memory.',
  );
}

/** What is asked for: throws when the model or the request itself does not allow it. */
function wantedContext(model: NativeModel, request: ModelRequest, need: SessionNeed): number {
  const trained = Math.floor(model.spec.contextTokens * need.ropeBaseScale);
  if (need.minTokens > trained) {
    throw new EngineError(
      'promptTooLong',
      `${need.minTokens} tokens do not fit into the model's context of ${trained}.`,
      'Use fewer tokens, a model with a longer context, or a larger --rope-base-scale.',
    );
  }
  if (request.contextTokens > trained) {
    throw invalidParams(
      `contextTokens = ${request.contextTokens} is above the model's context of ${trained}.`,
      `Use ${trained} or less, or 0 for as much as fits.`,
    );
  }
  if (request.contextTokens > 0 && request.contextTokens < need.minTokens) {
    throw new EngineError(
      'promptTooLong',
      `${need.minTokens} tokens do not fit into contextTokens = ${request.contextTokens}.`,
      'Use fewer tokens, or a larger context, or 0 for as much as is needed.',
    );
  }
  return request.contextTokens || need.minTokens || trained;
}

/** `wanted`, or what fits when nobody has asked for a size and that is at least `least`. */
function fittingContext(
  model: NativeModel,
  request: ModelRequest,
  need: SessionNeed,
  wanted: number,
  place: Place,
  least: number,
  device = '',
): number {
  const estimateWith = (kvCache: KvCacheType) =>
    model.estimateMemory({ ...place, contextTokens: wanted, params: need.params, kvCache });
  const estimate = estimateWith(request.kvCache);
  if (estimate.fits) return wanted;
  const largest = estimate.largestContextTokens;
  const flexible = request.contextTokens === 0 && need.minTokens === 0;
  if (flexible && largest >= least) return Math.min(largest, wanted);
  const smaller = request.kvCache === 'q8' ? null : estimateWith('q8');
  throw notEnoughMemory(model, estimate, smaller, device);
}

/** `smaller`: what the same context would need with a smaller KV cache, if there is one. */
function notEnoughMemory(
  model: NativeModel,
  estimate: MemoryEstimate,
  smaller: MemoryEstimate | null,
  device: string,
): EngineError {
  const { weightBytes, kvBytes, scratchBytes, availableBytes, contextTokens } = estimate;
  const largest = estimate.largestContextTokens;
  const ways: string[] = [];
  if (largest >= smallestContextTokens) ways.push(`use a context of ${largest} tokens or less`);
  if (smaller?.fits) ways.push('keep the KV cache as q8');
  else if (smaller && smaller.largestContextTokens >= smallestContextTokens) {
    ways.push(`keep the KV cache as q8 with a context of ${smaller.largestContextTokens} or less`);
  }
  if (ways.length === 0) ways.push('use a smaller model or a smaller quantization');
  const where = device === '' ? '' : ` on ${device}`;
  const most = device !== '' && largest > 0 ? `, enough for ${largest} tokens` : '';
  return new EngineError(
    'notEnoughMemory',
    `${model.spec.name} with a context of ${contextTokens} tokens needs ` +
      `${gib(totalBytes(estimate))}${where} (weights ${gib(weightBytes)}, KV cache ` +
      `${gib(kvBytes)}, scratch ${gib(scratchBytes)}); ${gib(availableBytes)} are available${most}.`,
    capitalized(`${[...ways, 'free memory'].join(', or ')}.`),
  );
}

function capitalized(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

function gib(bytes: number): string {
  return bytes >= 2 ** 30
    ? `${(bytes / 2 ** 30).toFixed(1)} GiB`
    : `${Math.ceil(bytes / 2 ** 20)} MiB`;
}
