/** What each command takes, and how an argument list becomes checked values. */
import { parseArgs } from 'node:util';
import { checkParam, kebabCase, paramFields, rangeText, startingParams } from '../engine/params';
import {
  anyDevice,
  backendChoices,
  calibrationModes,
  kvCacheTypes,
  type ModelRequest,
  type SampleAttentionParams,
  type Sampling,
} from '../engine/protocol';
import { checkBias, defaultSampling, samplingFields } from '../engine/sampling';
import { closest } from './closest';

export type CommandName = 'ask' | 'pack' | 'score' | 'calibrate' | 'bench' | 'evaluate' | 'doctor';

export interface Option {
  name: string;
  /** What the value is called in the help; a switch has none. */
  value?: string;
  description: string;
  required?: boolean;
  /** May be given several times. */
  repeated?: boolean;
}

export interface Command {
  name: CommandName;
  summary: string;
  options: readonly Option[];
  example: string;
}

/** Wrong usage: exit status 2. */
export class UsageError extends Error {
  constructor(
    message: string,
    readonly command: CommandName | undefined,
  ) {
    super(message);
    this.name = 'UsageError';
  }
}

const text: Option = {
  name: 'text',
  value: 'FILE',
  description: 'text to read, as raw bytes: no template, no special tokens',
};
const workspace: Option = {
  name: 'workspace',
  value: 'DIR',
  description: 'folder to read',
  required: true,
};
const budget: Option = {
  name: 'budget',
  value: 'N',
  description: 'most tokens spent on the workspace (default: all that the context leaves)',
};
const ropeBaseScale: Option = {
  name: 'rope-base-scale',
  value: 'X',
  description: 'multiplies the RoPE base and the longest context, 1 to 1000 (default 1)',
};

/** Curves of `evaluate`. */
export const evaluatedPolicies = ['dense', 'peak', 'mass', 'paper'] as const;

export const commands: readonly Command[] = [
  {
    name: 'ask',
    summary: 'asks a question about a folder and streams the answer',
    example: 'longsight ask --workspace . --question "Where is the retry policy decided?"',
    options: [
      workspace,
      { name: 'question', value: 'Q', description: 'what to ask', required: true },
      { name: 'max-tokens', value: 'N', description: 'longest answer in tokens (default 512)' },
      ...samplingFields.map((field) => ({
        name: kebabCase(field.name),
        value: field.type === 'integer' ? 'N' : 'X',
        description: `${field.description}; ${rangeText(field)} (${field.default})`,
      })),
      {
        name: 'logit-bias',
        value: 'TOKEN=X',
        description:
          'adds X, -1000 to 1000 or -inf, to the logit of a token id; may be repeated, or all at ' +
          'once as JSON {"TOKEN": X, ...}',
        repeated: true,
      },
      {
        name: 'thinking',
        description: 'let a reasoning model think before it answers; up to five times the tokens',
      },
      {
        name: 'show-thinking',
        description: 'thoughts on standard error also where that is no terminal, and with --json',
      },
      {
        name: 'session',
        value: 'FILE',
        description:
          'take over what FILE holds of the folder, and save it there afterwards; auto = a file of ' +
          'its own for each folder and model in ~/.cache/longsight/sessions',
      },
      budget,
      { name: 'strict', description: 'fail rather than leave files out' },
    ],
  },
  {
    name: 'pack',
    summary: 'lists what a question would read, and why',
    example: 'longsight pack --workspace . --json',
    options: [workspace, budget, { name: 'text', description: 'also print the packed text' }],
  },
  {
    name: 'score',
    summary: 'measures how well the model predicts the tail of a text',
    example: 'longsight score --text book.txt --tokens 8192 --against dense',
    options: [
      { ...text, required: true },
      {
        name: 'tokens',
        value: 'N',
        description: 'first tokens of the text that are used (default: all)',
      },
      {
        name: 'tail',
        value: 'N',
        description: 'last tokens that are scored (default 1024, or half of a shorter text)',
      },
      {
        name: 'tail-policy',
        value: 'P',
        description: 'dense, same: how the rows of the tail attend (default dense)',
      },
      {
        name: 'against',
        value: 'dense',
        description: 'also compare with dense attention: kl, top1Agreement',
      },
      ropeBaseScale,
    ],
  },
  {
    name: 'calibrate',
    summary: 'chooses epsilon by head on sample texts, and keeps that beside the model',
    example: 'longsight calibrate --text a.py --text b.cpp --tokens 8192',
    options: [
      {
        ...text,
        description: `${text.description}; may be repeated`,
        required: true,
        repeated: true,
      },
      {
        name: 'tokens',
        value: 'N',
        description: 'first tokens of each text that are used (default: all)',
      },
      {
        name: 'coverage',
        value: 'X',
        description: 'least density with this mean coverage, above 0, at most 1',
      },
      {
        name: 'kl',
        value: 'X',
        description:
          'least density with this KL against dense, above 0, at most 10; measured several times ' +
          '(default: least error at the density that --epsilon has)',
      },
      ropeBaseScale,
    ],
  },
  {
    name: 'bench',
    summary: 'measures prefill, decode and memory at given lengths',
    example:
      'longsight bench --synthetic llama-3.1-8b --weights q4_k_m --tokens 131072 --force-density 0.13 --decode 64',
    options: [
      {
        name: 'tokens',
        value: 'N[,N...]',
        description: 'prompt lengths (required without --prefix)',
      },
      {
        name: 'prefix',
        value: 'N',
        description: 'with --new: a prompt whose first N tokens are in the cache already',
      },
      { name: 'new', value: 'M', description: 'tokens behind the prefix' },
      { ...text, description: `${text.description} (default: generated words)` },
      {
        name: 'decode',
        value: 'N',
        description: 'tokens to generate behind each prompt (default 0)',
      },
      { name: 'runs', value: 'N', description: 'of each prompt; the median is shown (default 1)' },
      {
        name: 'speculate',
        description: 'guess tokens from the prompt while generating, as answers do (default: no)',
      },
      {
        name: 'synthetic',
        value: 'NAME',
        description:
          'random weights in the shape of a model, made on the GPU: llama-3.1-8b, qwen2.5-7b and others',
      },
      {
        name: 'weights',
        value: 'TYPE',
        description: 'type of the random weights, e.g. bf16, q8_0, q4_k_m (default bf16)',
      },
      {
        name: 'force-density',
        value: 'D',
        description:
          'keep this share of the attention, above 0, at most 1, where a policy is sparse: random ' +
          'weights have no structure to find; sampling runs and is timed nevertheless, answers mean nothing',
      },
      ropeBaseScale,
    ],
  },
  {
    name: 'evaluate',
    summary: 'measures what sparse attention costs and loses against dense, as table and plot',
    example: 'longsight evaluate --text a.py --text b.md --tokens 8192 --plot fidelity.svg',
    options: [
      { ...text, description: `${text.description}; may be repeated`, repeated: true },
      {
        name: 'tokens',
        value: 'N[,N...]',
        description: 'lengths: first tokens of each text',
      },
      {
        name: 'tail',
        value: 'N[,N...]',
        description:
          'last tokens, scored and dense (default 1024, or half of a shorter length); 0 = only --probe',
      },
      {
        name: 'policy',
        value: 'P[,P...]',
        description: `curves, of ${evaluatedPolicies.join(', ')} (default all); dense is always measured`,
      },
      {
        name: 'epsilon',
        value: 'X[,X...]',
        description: 'points of the curve of peak (default 0.001,0.003,0.01)',
      },
      {
        name: 'alpha',
        value: 'X[,X...]',
        description: 'points of the curves of mass and paper (default 0.9,0.95,0.98)',
      },
      {
        name: 'rope-base-scale',
        value: 'X|N:X[,...]',
        description: 'as in score, for all lengths or for length N, e.g. 16384:4 (default 1)',
      },
      {
        name: 'probe',
        description: 'also plant NAME = value lines in the texts and ask for them at the end',
      },
      { name: 'plot', value: 'FILE', description: 'write KL against density as SVG' },
      {
        name: 'from',
        value: 'FILE',
        description: 'show what --json wrote instead of measuring; may be repeated',
        repeated: true,
      },
    ],
  },
  {
    name: 'doctor',
    summary: 'shows what this machine can run',
    example: 'longsight doctor',
    options: [],
  },
];

export const commonOptions: readonly Option[] = [
  {
    name: 'model',
    value: 'FILE',
    description: 'GGUF file (default: $LONGSIGHT_MODEL, else one from the models folder)',
  },
  {
    name: 'backend',
    value: 'B',
    description: 'auto, cuda, cpu; auto = an NVIDIA GPU where one works (default auto)',
  },
  {
    name: 'device',
    value: 'N',
    description: 'number of the GPU, as doctor lists them; -1 = most free memory (default -1)',
  },
  {
    name: 'threads',
    value: 'N',
    description: 'CPU threads, 0 to 1024; 0 = physical cores (default 0)',
  },
  {
    name: 'context-tokens',
    value: 'N',
    description: 'size of the context; 0 = what model and memory allow (default 0)',
  },
  {
    name: 'kv-cache',
    value: 'T',
    description: `${kvCacheTypes.join(', ')}: q8 takes about half the memory (default bf16)`,
  },
  {
    name: 'calibration',
    value: 'C',
    description: 'auto, off: use what calibrate has kept beside the model (default auto)',
  },
  { name: 'json', description: 'exactly one JSON object on standard output' },
  { name: 'verbose', description: 'the log of the engine on standard error' },
  { name: 'help', description: 'this text' },
];

export const paramOptions: readonly Option[] = paramFields.map((field) => ({
  name: kebabCase(field.name),
  value: field.type === 'choice' ? 'P' : field.type === 'integer' ? 'N' : 'X',
  description: field.description,
}));

/** Those that the command does not read itself, e.g. as a list. */
export function paramOptionsOf(command: Command): Option[] {
  return paramOptions.filter(({ name }) => command.options.every((own) => own.name !== name));
}

export function findCommand(name: string): Command | undefined {
  return commands.find((command) => command.name === name);
}

/** Values of one command line, with readers that check what they return. */
export class Arguments {
  private constructor(
    readonly command: Command,
    private readonly values: Record<string, string | boolean | string[] | undefined>,
  ) {}

  /** `args` without the command's name. Throws `UsageError`. */
  static parse(command: Command, args: string[]): Arguments {
    const known = [...paramOptionsOf(command), ...commonOptions, ...command.options];
    const options = Object.fromEntries(
      known.map((option) => [
        option.name,
        {
          type: option.value === undefined ? ('boolean' as const) : ('string' as const),
          multiple: option.repeated ?? false,
        },
      ]),
    );
    try {
      const { values } = parseArgs({
        args: withValuesJoined(args, (name) => options[name]?.type === 'string'),
        options,
        strict: true,
        allowPositionals: false,
      });
      // Only options with a value are repeated.
      return new Arguments(command, values as Arguments['values']);
    } catch (error) {
      throw new UsageError(usageSentence(error, Object.keys(options)), command.name);
    }
  }

  has(name: string): boolean {
    return this.values[name] === true;
  }

  text(name: string): string | undefined {
    const value = this.values[name];
    return typeof value === 'string' ? value : undefined;
  }

  /** Of a repeated option; empty when it is not given. */
  texts(name: string): string[] {
    const value = this.values[name];
    return Array.isArray(value) ? value : [];
  }

  /** The parts of a comma-separated list. */
  list(name: string, fallback: string): string[] {
    return (this.text(name) ?? fallback).split(',').map((part) => part.trim());
  }

  required(name: string): string {
    const value = this.text(name);
    if (value === undefined || value.trim() === '') {
      this.fail(`--${name} ${value === undefined ? 'is missing' : 'is empty'}`);
    }
    return value;
  }

  integer(name: string, fallback: number, min: number, max: number): number {
    const value = this.text(name);
    if (value === undefined) return fallback;
    return this.checkedInteger(name, value, min, max);
  }

  /** A comma-separated list; required unless there is a `fallback`. */
  integers(name: string, min: number, max: number, fallback?: string): number[] {
    const list = this.text(name) ?? fallback ?? this.required(name);
    return list.split(',').map((value) => this.checkedInteger(name, value, min, max));
  }

  /** `openMin`: `min` itself is not allowed. */
  number(name: string, fallback: number, min: number, max: number, openMin = false): number {
    const value = this.text(name);
    return value === undefined ? fallback : this.numberOf(name, value, min, max, openMin);
  }

  /** A number that is part of what stands behind `--name`. */
  numberOf(name: string, value: string, min: number, max: number, openMin = false): number {
    const parsed = parseNumber(value);
    if (!(parsed >= min && parsed <= max) || (openMin && parsed === min)) {
      const range = openMin ? `above ${min}, at most ${max}` : `${min} to ${max}`;
      this.fail(`--${name} ${value} is outside its range: ${range}`);
    }
    return parsed;
  }

  /** As `number`, with null for what is not given. */
  optionalNumber(name: string, min: number, max: number, openMin = false): number | null {
    return this.text(name) === undefined ? null : this.number(name, 0, min, max, openMin);
  }

  choice<T extends string>(name: string, fallback: T, choices: readonly T[]): T {
    const value = this.text(name) ?? fallback;
    const found = choices.find((choice) => choice === value);
    if (found === undefined) this.fail(`--${name} ${value} is not one of ${choices.join(', ')}`);
    return found;
  }

  /**
   * The parameters of SampleAttention. `--policy paper` sets all; other flags then change some.
   * `own` has the flags that this command reads itself.
   */
  params(own: Record<string, string> = {}): SampleAttentionParams {
    const flags = new Set(paramOptionsOf(this.command).map(({ name }) => name));
    const textOf = (flag: string) => own[flag] ?? (flags.has(flag) ? this.text(flag) : undefined);
    const params: Record<string, string | number> = { ...startingParams(textOf('policy')) };
    for (const field of paramFields) {
      const flag = kebabCase(field.name);
      const given = textOf(flag);
      if (given === undefined || (field.name === 'policy' && given === 'paper')) continue;
      const value = field.type === 'choice' ? given : parseNumber(given);
      const problem = checkParam(field, value, given);
      if (problem !== undefined) this.fail(`--${flag}: ${problem.slice(0, -1)}`);
      params[field.name] = value;
    }
    return params as unknown as SampleAttentionParams;
  }

  sampling(): Sampling {
    const sampling: Sampling = { ...defaultSampling, logitBias: this.logitBias('logit-bias') };
    for (const field of samplingFields) {
      const flag = kebabCase(field.name);
      const given = this.text(flag);
      if (given === undefined) continue;
      const value = parseNumber(given);
      const problem = checkParam(field, value, given);
      if (problem !== undefined) this.fail(`--${flag}: ${problem.slice(0, -1)}`);
      sampling[field.name] = value;
    }
    return sampling;
  }

  /** All of the model request but the path. */
  modelOptions(): Omit<ModelRequest, 'path'> {
    return {
      backend: this.choice('backend', 'auto', backendChoices),
      device: this.integer('device', anyDevice, anyDevice, mostDevice),
      threads: this.integer('threads', 0, 0, 1024),
      contextTokens: this.integer('context-tokens', 0, 0, mostTokens),
      kvCache: this.choice('kv-cache', 'bf16', kvCacheTypes),
      calibration: this.choice('calibration', 'auto', calibrationModes),
    };
  }

  /** `TOKEN=BIAS`, or JSON: an object by token, or pairs. */
  private logitBias(name: string): [number, number][] {
    const texts = this.texts(name);
    const pairs = texts.flatMap((value) => parseBias(value) ?? this.fail(notABias(name, value)));
    for (const [token, bias] of pairs) {
      const problem = checkBias(token, bias);
      if (problem !== undefined) this.fail(`--${name}: ${problem.slice(0, -1)}`);
    }
    return pairs;
  }

  fail(message: string): never {
    throw new UsageError(`${message}.`, this.command.name);
  }

  private checkedInteger(name: string, value: string, min: number, max: number): number {
    const parsed = parseNumber(value);
    if (!Number.isInteger(parsed) || parsed < min || parsed > max) {
      this.fail(`--${name} ${value === '' ? '""' : value} is not an integer from ${min} to ${max}`);
    }
    return parsed;
  }
}

export const mostTokens = 2 ** 24;
const mostDevice = 63;

/** Decimal numbers only: `Number` alone would take '' as 0 and '0x10' as 16. */
function parseNumber(value: string): number {
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(value) ? Number(value) : NaN;
}

function parseBias(value: string): [number, number][] | undefined {
  if (/^\s*[[{]/.test(value)) return parseBiasJson(value);
  const [token, bias, ...rest] = value.split('=');
  if (bias === undefined || rest.length > 0) return undefined;
  return [[parseNumber(token!), biasNumber(bias)]];
}

function parseBiasJson(value: string): [number, number][] | undefined {
  try {
    const parsed: unknown = JSON.parse(value);
    if (!Array.isArray(parsed)) {
      return Object.entries(parsed as object).map(([token, bias]) => [
        parseNumber(token),
        biasNumber(bias),
      ]);
    }
    if (!parsed.every((pair) => Array.isArray(pair) && pair.length === 2)) return undefined;
    return (parsed as [unknown, unknown][]).map(([token, bias]) => [
      parseNumber(String(token)),
      biasNumber(bias),
    ]);
  } catch {
    return undefined;
  }
}

/** JSON has no infinity: `"-inf"` or `false` stand for it. */
function biasNumber(bias: unknown): number {
  if (bias === false || /^-inf(inity)?$/i.test(String(bias))) return -Infinity;
  return parseNumber(String(bias));
}

function notABias(name: string, value: string): string {
  return `--${name} ${value} is neither TOKEN=BIAS nor JSON like {"15043": -5}`;
}

/** Where a value is due, what begins with one dash is it: `--device -1`. */
function withValuesJoined(args: string[], takesValue: (name: string) => boolean): string[] {
  const joined: string[] = [];
  for (let at = 0; at < args.length; at++) {
    const [arg, next] = [args[at]!, args[at + 1]];
    if (arg.startsWith('--') && takesValue(arg.slice(2)) && /^-[^-]/.test(next ?? '')) {
      joined.push(`${arg}=${next}`);
      at++;
    } else {
      joined.push(arg);
    }
  }
  return joined;
}

function usageSentence(error: unknown, known: readonly string[]): string {
  const message = error instanceof Error ? error.message : String(error);
  const ambiguous = /^Option '(--[^\s']+).*' argument is ambiguous/.exec(message)?.[1];
  if (ambiguous !== undefined) {
    return `${ambiguous} has no value; one that begins with two dashes is written ${ambiguous}=VALUE.`;
  }
  // The first sentence says what is wrong; the rest explains how to pass odd positionals.
  const first = message.split(/\. (?=[A-Z])|\n/)[0]!;
  const unknown = /^Unknown option '--(.*)'$/.exec(first)?.[1];
  const meant = unknown === undefined ? undefined : closest(unknown, known);
  const hint = meant === undefined ? '' : ` Did you mean --${meant}?`;
  return (first.endsWith('.') ? first : `${first}.`) + hint;
}
