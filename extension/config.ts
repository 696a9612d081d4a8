/** Settings -> typed, validated values. The caller hands in the reader, so this runs anywhere. */
import os from 'node:os';
import path from 'node:path';
import { invalidParams } from './engine/errors';
import {
  checkParam,
  paramFields,
  requireValidParams,
  startingParams,
  type ParamField,
} from './engine/params';
import {
  anyDevice,
  backendChoices,
  calibrationModes,
  kvCacheTypes,
  type BackendChoice,
  type CalibrationMode,
  type KvCacheType,
  type SampleAttentionParams,
  type Sampling,
} from './engine/protocol';
import { defaultSampling, samplingFields } from './engine/sampling';

export interface Settings {
  /** Absolute path of a GGUF file; empty = none chosen. */
  modelPath: string;
  /** Absolute path; empty = the default folder. */
  modelsFolder: string;
  backend: BackendChoice;
  /** Number of the GPU; -1 = the one with the most free memory. */
  cudaDevice: number;
  /** Idle minutes after which the GPU is given back; 0 = never. */
  cudaReleaseAfterMinutes: number;
  /** 0 = one for each physical core. */
  threads: number;
  /** 0 = as much as model and memory allow. */
  contextTokens: number;
  kvCache: KvCacheType;
  calibration: CalibrationMode;
  answerTokens: number;
  /** A reasoning model may think before it answers. */
  thinking: boolean;
  /** A prefill that is predicted to take longer is confirmed first; 0 = never. */
  confirmAboveSeconds: number;
  /** Most that saved sessions may take on the disk, in 10^9 bytes; 0 = none are saved. */
  savedSessionsGB: number;
  params: SampleAttentionParams;
  sampling: Sampling;
}

/**
 * Reads a setting below `longsight.`, e.g. `sparsity.epsilon`; undefined where nobody has set it,
 * so that a preset can.
 */
export type ReadSetting = (key: string) => unknown;

export interface NumberRange {
  min: number;
  max: number;
  default: number;
  /** Not only whole numbers. */
  fractions?: true;
}

export const numberSettings = {
  'cuda.device': { min: anyDevice, max: 63, default: anyDevice },
  'cuda.releaseAfterMinutes': { min: 0, max: 10_080, default: 15, fractions: true },
  threads: { min: 0, max: 1024, default: 0 },
  contextTokens: { min: 0, max: 16_777_216, default: 0 },
  answerTokens: { min: 1, max: 65_536, default: 512 },
  confirmAboveSeconds: { min: 0, max: 86_400, default: 30, fractions: true },
  savedSessionsGB: { min: 0, max: 100_000, default: 8, fractions: true },
} as const satisfies Record<string, NumberRange>;

const correctIt = 'Correct it in the settings; the change applies to the next question.';

/** Throws `invalidParams` naming the first setting that cannot be used. */
export function readSettings(read: ReadSetting): Settings {
  const settings: Settings = {
    modelPath: readPath(read, 'model'),
    modelsFolder: readPath(read, 'modelsFolder'),
    backend: readChoice(read, 'backend', backendChoices),
    cudaDevice: readNumber(read, 'cuda.device'),
    cudaReleaseAfterMinutes: readNumber(read, 'cuda.releaseAfterMinutes'),
    threads: readNumber(read, 'threads'),
    contextTokens: readNumber(read, 'contextTokens'),
    kvCache: readChoice(read, 'kvCache', kvCacheTypes),
    calibration: readChoice(read, 'calibration', calibrationModes),
    answerTokens: readNumber(read, 'answerTokens'),
    thinking: readBoolean(read, 'thinking'),
    confirmAboveSeconds: readNumber(read, 'confirmAboveSeconds'),
    savedSessionsGB: readNumber(read, 'savedSessionsGB'),
    params: readParams(read),
    sampling: { ...defaultSampling, ...readFields(read, 'sampling', samplingFields) },
  };
  requireValidParams(settings.params);
  return settings;
}

/** With the preset `paper`, what is not set is as in the paper. */
function readParams(read: ReadSetting): SampleAttentionParams {
  const policy = read('sparsity.policy');
  const start = startingParams(policy === 'paper' ? policy : undefined);
  const readParam = (key: string) =>
    policy === 'paper' && key === 'sparsity.policy' ? undefined : read(key);
  const params = readFields(readParam, 'sparsity', paramFields, { ...start });
  return params as unknown as SampleAttentionParams;
}

function readFields(
  read: ReadSetting,
  group: string,
  fields: readonly ParamField<string>[],
  start: Record<string, unknown> = {},
): Record<string, unknown> {
  const values: Record<string, unknown> = {};
  for (const field of fields) {
    const value = read(`${group}.${field.name}`) ?? start[field.name] ?? field.default;
    const problem = checkParam(field, value);
    if (problem !== undefined)
      throw invalidParams(`Setting longsight.${group}.${problem}`, correctIt);
    values[field.name] = value;
  }
  return values;
}

/** How long the engine may idle on a GPU; the default where the setting is unusable. 0 = for ever. */
export function readGpuIdleMs(read: ReadSetting): number {
  const key = 'cuda.releaseAfterMinutes';
  try {
    return readNumber(read, key) * 60_000;
  } catch {
    return numberSettings[key].default * 60_000;
  }
}

/** The path settings alone, empty where unusable: choosing a model must work while a setting is wrong. */
export function readModelSettings(read: ReadSetting): Pick<Settings, 'modelPath' | 'modelsFolder'> {
  const usable = (key: 'model' | 'modelsFolder') => {
    try {
      return readPath(read, key);
    } catch {
      return '';
    }
  };
  return { modelPath: usable('model'), modelsFolder: usable('modelsFolder') };
}

function readNumber(read: ReadSetting, key: keyof typeof numberSettings): number {
  const range: NumberRange = numberSettings[key];
  const value = read(key) ?? range.default;
  if (
    typeof value !== 'number' ||
    !(range.fractions ? Number.isFinite(value) : Number.isInteger(value)) ||
    value < range.min ||
    value > range.max
  ) {
    throw invalidParams(
      `Setting longsight.${key} = ${JSON.stringify(value)} is not ${range.fractions ? 'a number' : 'an integer'} from ${range.min} to ${range.max}.`,
      correctIt,
    );
  }
  return value;
}

/** The first choice is the default. */
function readChoice<T extends string>(
  read: ReadSetting,
  key: string,
  choices: readonly [T, ...T[]],
): T {
  const value = read(key) ?? choices[0];
  const found = choices.find((choice) => choice === value);
  if (found !== undefined) return found;
  throw invalidParams(
    `Setting longsight.${key} = ${JSON.stringify(value)} is not one of ${choices.join(', ')}.`,
    correctIt,
  );
}

function readBoolean(read: ReadSetting, key: 'thinking'): boolean {
  const value = read(key) ?? false;
  if (typeof value === 'boolean') return value;
  throw invalidParams(
    `Setting longsight.${key} = ${JSON.stringify(value)} is neither true nor false.`,
    correctIt,
  );
}

function readPath(read: ReadSetting, key: 'model' | 'modelsFolder'): string {
  const value = read(key) ?? '';
  if (typeof value !== 'string') {
    throw invalidParams(
      `Setting longsight.${key} = ${JSON.stringify(value)} is not a path.`,
      correctIt,
    );
  }
  const trimmed = value.trim();
  if (trimmed === '') return '';
  const expanded = trimmed.replace(/^~(?=$|[/\\])/, os.homedir());
  if (!path.isAbsolute(expanded)) {
    throw invalidParams(
      `Setting longsight.${key} = "${trimmed}" is not an absolute path.`,
      correctIt,
    );
  }
  return path.normalize(expanded);
}
