/**
 * How tokens are drawn, as one table: flags of the command line, settings of the editor and the
 * checks of the engine come from here. What each step does and in which order: the head of
 * native/session/sampler.h.
 */
import { invalidParams } from './errors';
import { checkParam, type NumberField } from './params';
import type { Sampling } from './protocol';

export type SamplingNumber = Exclude<keyof Sampling, 'logitBias' | 'stop'>;

export const samplingFields: readonly NumberField<SamplingNumber>[] = [
  {
    name: 'temperature',
    type: 'number',
    default: 0,
    min: 0,
    max: 5,
    description: '0 always takes the likeliest token; higher is more varied',
  },
  {
    name: 'topK',
    type: 'integer',
    default: 0,
    min: 0,
    max: 2147483647,
    description: 'samples from this many of the likeliest tokens; 0 is off',
  },
  {
    name: 'topP',
    type: 'number',
    default: 1,
    min: 0,
    max: 1,
    openMin: true,
    description: 'samples from the likeliest tokens that together reach this probability; 1 is off',
  },
  {
    name: 'minP',
    type: 'number',
    default: 0,
    min: 0,
    max: 1,
    description: 'samples from tokens at least this likely, relative to the likeliest; 0 is off',
  },
  {
    name: 'repetitionPenalty',
    type: 'number',
    default: 1,
    min: 0,
    max: 10,
    openMin: true,
    description: 'above 1 makes the last 64 tokens of prompt and answer less likely; 1 is off',
  },
  {
    name: 'seed',
    type: 'integer',
    default: 0,
    min: 0,
    max: 2 ** 32 - 1,
    description: 'repeats a sampled answer',
  },
];

const mostBias = 1000;

/** Greedy, without bias and stop texts. */
export const defaultSampling: Readonly<Sampling> = Object.freeze({
  ...(Object.fromEntries(samplingFields.map((field) => [field.name, field.default])) as Record<
    SamplingNumber,
    number
  >),
  logitBias: [],
  stop: [],
});

/** One sentence with value and range when this is not a pair [token, bias]. */
export function checkBias(token: number, bias: number): string | undefined {
  if (!Number.isInteger(token) || token < 0 || token > 2147483647) {
    return `logitBias: ${token} is not the id of a token.`;
  }
  if (bias === -Infinity || Math.abs(bias) <= mostBias) return undefined;
  return `logitBias of token ${token} = ${bias} is outside its range: -${mostBias} to ${mostBias}, or -Infinity.`;
}

/** Throws `invalidParams` with value and range. Whether a token exists, only the model knows. */
export function requireValidSampling(sampling: Sampling): void {
  for (const field of samplingFields) {
    const problem = checkParam(field, sampling[field.name]);
    if (problem !== undefined) throw invalidParams(problem);
  }
  for (const [token, bias] of sampling.logitBias) {
    const problem = checkBias(token, bias);
    if (problem !== undefined) throw invalidParams(problem);
  }
}
