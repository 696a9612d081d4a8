/**
 * `SampleAttentionParams` as one table: flags of the command line, settings of the editor and the
 * checks of the engine come from here. Ranges are those of docs/sample-attention.md, section 5.
 */
import { invalidParams } from './errors';
import type { SampleAttentionParams } from './protocol';

interface FieldBase<Name extends string> {
  name: Name;
  description: string;
}

type ParamName = keyof SampleAttentionParams;

export interface ChoiceField<Name extends string = ParamName> extends FieldBase<Name> {
  type: 'choice';
  default: string;
  choices: readonly string[];
}

export interface NumberField<Name extends string = ParamName> extends FieldBase<Name> {
  type: 'number' | 'integer';
  default: number;
  min: number;
  max: number;
  /** `min` or `max` itself is not allowed. */
  openMin?: boolean;
  openMax?: boolean;
  multipleOf?: number;
  /** What 0 means, when 0 is allowed although it lies outside [min, max]. */
  zero?: string;
}

export type ParamField<Name extends string = ParamName> = ChoiceField<Name> | NumberField<Name>;

export const paramFields: readonly ParamField[] = [
  {
    name: 'policy',
    type: 'choice',
    default: 'peak',
    choices: ['dense', 'peak', 'mass'],
    description:
      'how columns are chosen, peak or mass; dense computes everything; paper is mass as published',
  },
  {
    name: 'alpha',
    type: 'number',
    default: 0.95,
    min: 0,
    max: 1,
    openMin: true,
    description: 'mass: share of the attention mass that the kept columns must hold; 1 keeps all',
  },
  {
    name: 'epsilon',
    type: 'number',
    default: 0.003,
    min: 0,
    max: 1,
    openMax: true,
    description: 'peak: keeps columns above this share of the window and sink mass; 0 keeps all',
  },
  {
    name: 'scoreDims',
    type: 'choice',
    default: 'slowHalf',
    choices: ['slowHalf', 'all'],
    description: 'dimensions of the head that the sampling scores use',
  },
  {
    name: 'sampleStride',
    type: 'integer',
    default: 8,
    min: 1,
    max: 64,
    description: 'every n-th row votes',
  },
  {
    name: 'segmentRows',
    type: 'integer',
    default: 2048,
    min: 256,
    max: 8192,
    multipleOf: 128,
    zero: 'one segment',
    description: 'rows that share one column list',
  },
  {
    name: 'windowTokens',
    type: 'integer',
    default: 256,
    min: 128,
    max: 8192,
    description: 'latest tokens that every row sees',
  },
  {
    name: 'windowFraction',
    type: 'number',
    default: 0,
    min: 0,
    max: 0.5,
    description: 'the window is at least this share of the prompt so far',
  },
  {
    name: 'sinkTokens',
    type: 'integer',
    default: 16,
    min: 0,
    max: 128,
    description: 'first tokens that every row sees',
  },
  {
    name: 'denseBelowTokens',
    type: 'integer',
    default: 4096,
    min: 0,
    max: 2147483647,
    description: 'segments that end at or below this position are dense',
  },
  {
    name: 'maxListShare',
    type: 'number',
    default: 0.6,
    min: 0,
    max: 1,
    description: 'a head that keeps more than this share of the columns is dense',
  },
  {
    name: 'auditRows',
    type: 'integer',
    default: 8,
    min: 0,
    max: 256,
    description: 'rows of a segment whose coverage is measured exactly',
  },
];

export const defaultParams: Readonly<SampleAttentionParams> = Object.freeze(
  Object.fromEntries(paramFields.map((field) => [field.name, field.default])),
) as unknown as SampleAttentionParams;

/** The values of the paper. */
const paperPreset: Readonly<SampleAttentionParams> = Object.freeze({
  ...defaultParams,
  policy: 'mass',
  alpha: 0.95,
  sampleStride: 20,
  windowFraction: 0.08,
  windowTokens: 128,
  sinkTokens: 0,
  segmentRows: 0,
  denseBelowTokens: 0,
} as const);

/** What a policy's parameters are where none is set: the defaults, or those of the preset `paper`. */
export function startingParams(policy: string | undefined): SampleAttentionParams {
  return policy === 'paper' ? { ...paperPreset } : { ...defaultParams };
}

/** `windowTokens` -> `window-tokens`. */
export function kebabCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/** The allowed values in words, e.g. `256 to 8192, a multiple of 128, or 0 (one segment)`. */
export function rangeText(field: ParamField<string>): string {
  if (field.type === 'choice') return field.choices.join(', ');
  const parts: string[] = [];
  if (field.openMin) parts.push(`above ${field.min}, at most ${field.max}`);
  else if (field.openMax) parts.push(`at least ${field.min}, below ${field.max}`);
  else parts.push(`${field.min} to ${field.max}`);
  if (field.multipleOf !== undefined) parts.push(`a multiple of ${field.multipleOf}`);
  if (field.zero !== undefined) parts.push(`or 0 (${field.zero})`);
  return parts.join(', ');
}

/**
 * `undefined` when the value is allowed, otherwise one sentence with value and range. `shown` is
 * the value as the user wrote it.
 */
export function checkParam(
  field: ParamField<string>,
  value: unknown,
  shown = String(value),
): string | undefined {
  const wrong = `${field.name} = ${shown}`;
  if (field.type === 'choice') {
    return typeof value === 'string' && field.choices.includes(value)
      ? undefined
      : `${wrong} is not one of ${rangeText(field)}.`;
  }
  const outside = `${wrong} is outside its range: ${rangeText(field)}.`;
  if (typeof value !== 'number' || !Number.isFinite(value)) return outside;
  if (field.type === 'integer' && !Number.isInteger(value)) return `${wrong} is not an integer.`;
  if (value === 0 && field.zero !== undefined) return undefined;
  if (value < field.min || value > field.max) return outside;
  if (field.openMin && value === field.min) return outside;
  if (field.openMax && value === field.max) return outside;
  if (field.multipleOf !== undefined && value % field.multipleOf !== 0) return outside;
  return undefined;
}

/** Throws `invalidParams` for the first value that is not allowed. */
export function requireValidParams(params: SampleAttentionParams): void {
  for (const field of paramFields) {
    const problem = checkParam(field, params[field.name]);
    if (problem !== undefined) throw invalidParams(problem);
  }
}
