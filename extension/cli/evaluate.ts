/** `evaluate`: from flags to a plan, from measurements (or kept ones) to table, JSON and plot. */
import { constants } from 'node:fs';
import { access, readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { EngineError } from '../engine/errors';
import type {
  EvaluationLength,
  EvaluationResult,
  EvaluationRow,
  EvaluationSetting,
  ProbeRow,
} from '../engine/evaluation';
import type { Event } from '../engine/protocol';
import { formatCount } from '../status/format';
import { evaluationPlot } from './evaluationPlot';
import { evaluationText, partText } from './evaluationTable';
import { evaluatedPolicies, mostTokens, type Arguments } from './options';
import type { Action, CommandRun } from './run';

const defaultTail = 1024;

export async function prepareEvaluate(args: Arguments, run: CommandRun): Promise<Action> {
  const plot = args.text('plot');
  if (plot !== undefined) await requireWritable(path.resolve(run.cwd, plot));
  const kept = args.texts('from');
  if (kept.length > 0) {
    const select = selection(args);
    return async () => {
      const all = await Promise.all(kept.map((file) => readResult(path.resolve(run.cwd, file))));
      const result = select(merged(all));
      await finish(result);
      return 0;
    };
  }

  const lengths = lengthsOf(args);
  const body = {
    lengths,
    settings: settingsOf(args),
    tails: tailsOf(args, lengths),
    probe: args.has('probe'),
  };
  const files = args.texts('text');
  if (files.length === 0) args.fail('--text is missing (or --from)');
  const texts = await Promise.all(
    files.map(async (name) => ({ name, bytes: await run.readText(name) })),
  );
  const model = await run.model();

  return async (engine, options) => {
    const { settings } = body;
    const name = path.basename(model.path);
    const partial: EvaluationResult = { model: name, settings, rows: [], probes: [] };
    const onEvent = (event: Event) => {
      options.onEvent?.(event);
      if (event.type !== 'evaluated') return;
      if ('row' in event.part) partial.rows.push(event.part.row);
      else partial.probes.push(...event.part.probes);
      run.note(`${formatCount(event.done)} of ${event.total}: ${partText(event.part)}\n`);
    };
    let result: EvaluationResult;
    try {
      result = await engine.evaluate({ ...body, texts, model }, { ...options, onEvent }).result;
    } catch (error) {
      if (partial.rows.length + partial.probes.length === 0) throw error;
      const status = run.printPartial(partial, evaluationText(partial), error);
      await writePlot(partial);
      return status;
    }
    await finish(result);
    return 0;
  };

  async function finish(result: EvaluationResult): Promise<void> {
    run.print(result, evaluationText(result));
    await writePlot(result);
  }

  async function writePlot(result: EvaluationResult): Promise<void> {
    if (plot !== undefined) await writeFile(path.resolve(run.cwd, plot), evaluationPlot(result));
  }
}

/** One curve a policy; its points are the values of what decides how much it keeps. */
function settingsOf(args: Arguments): EvaluationSetting[] {
  const settings: EvaluationSetting[] = [];
  for (const policy of distinct(args.list('policy', evaluatedPolicies.join()))) {
    if (!evaluatedPolicies.some((each) => each === policy)) {
      args.fail(`--policy ${policy || '""'} is not one of ${evaluatedPolicies.join(', ')}`);
    }
    const basic = args.params({ policy });
    const points =
      basic.policy === 'peak'
        ? distinct(args.list('epsilon', '0.001,0.003,0.01')).map((epsilon) => ({ epsilon }))
        : basic.policy === 'mass'
          ? distinct(args.list('alpha', '0.9,0.95,0.98')).map((alpha) => ({ alpha }))
          : [{}];
    for (const point of points) {
      settings.push({ policy, params: args.params({ policy, ...point }) });
    }
  }
  return settings;
}

function lengthsOf(args: Arguments): EvaluationLength[] {
  const counts = distinct(args.integers('tokens', 3, mostTokens));
  const scales = new Map<number, number>();
  let general = 1;
  for (const item of args.list('rope-base-scale', '1')) {
    const [, count, scale] = /^(?:(.*):)?(.*)$/s.exec(item)!;
    const value = args.numberOf('rope-base-scale', scale!, 1, 1000);
    if (count === undefined) general = value;
    else if (counts.some((tokens) => `${tokens}` === count)) scales.set(Number(count), value);
    else args.fail(`--rope-base-scale ${item}: ${count} is not one of the --tokens`);
  }
  return counts.map((tokens) => ({ tokens, ropeBaseScale: scales.get(tokens) ?? general }));
}

function tailsOf(args: Arguments, lengths: EvaluationLength[]): number[] {
  const shortest = Math.min(...lengths.map(({ tokens }) => tokens));
  if (args.text('tail') === '0') {
    if (!args.has('probe')) args.fail('--tail 0 leaves nothing to measure without --probe');
    return [];
  }
  const usual = Math.min(defaultTail, Math.floor(shortest / 2));
  return distinct(args.integers('tail', 2, shortest - 1, `${usual}`));
}

/** With `--from`, `--tokens`, `--tail` and `--policy` choose what is shown. */
function selection(args: Arguments): (result: EvaluationResult) => EvaluationResult {
  for (const flag of ['text', 'epsilon', 'alpha', 'rope-base-scale', 'probe']) {
    const given = args.has(flag) || args.text(flag) !== undefined || args.texts(flag).length > 0;
    if (given) args.fail(`--${flag} does not go with --from, which measures nothing`);
  }
  const tokens = args.text('tokens') === undefined ? null : args.integers('tokens', 3, mostTokens);
  const tails = args.text('tail') === undefined ? null : args.integers('tail', 2, mostTokens);
  const policies = args.text('policy') === undefined ? null : args.list('policy', '');
  const wanted = (row: EvaluationRow | ProbeRow) =>
    (tokens?.includes(row.tokens) ?? true) && (policies?.includes(row.policy) ?? true);
  return ({ model, settings, rows, probes }) => ({
    model,
    settings: settings.filter(({ policy }) => policies?.includes(policy) ?? true),
    rows: rows.filter((row) => wanted(row) && (tails?.includes(row.tail) ?? true)),
    probes: probes.filter(wanted),
  });
}

function merged(results: EvaluationResult[]): EvaluationResult {
  return {
    model: distinct(results.map(({ model }) => model)).join(', '),
    settings: results.flatMap(({ settings }) => settings),
    rows: results.flatMap(({ rows }) => rows),
    probes: results.flatMap(({ probes }) => probes),
  };
}

async function readResult(file: string): Promise<EvaluationResult> {
  let problem = 'it is not what `longsight evaluate --json` writes';
  try {
    const value: unknown = JSON.parse(await readFile(file, 'utf8'));
    if (isResult(value)) return value;
  } catch (error) {
    problem = error instanceof Error ? error.message : String(error);
  }
  throw new EngineError(
    'unreadableFile',
    `The results ${file} cannot be read: ${problem}.`,
    'Name a file with the output of `longsight evaluate --json`.',
  );
}

const pointFields = { text: 'string', policy: 'string', tokens: 'number', ropeBaseScale: 'number' };
const rowFields = {
  ...pointFields,
  ...{ tail: 'number', density: 'number', kl: 'number', top1Agreement: 'number', nll: 'number' },
  ...{ sparseDensity: 'number?', coverageMean: 'number?', coverageP5: 'number?' },
  ...{ alpha: 'number?', epsilon: 'number?', prefillMs: 'number?' },
};
const probeFields = {
  ...pointFields,
  ...{ depth: 'number', logProbability: 'number', chance: 'number', found: 'boolean' },
};

function isResult(value: unknown): value is EvaluationResult {
  const { model, settings, rows, probes } = (value ?? {}) as Partial<Record<string, unknown>>;
  const all = (list: unknown, fields: Record<string, string>) =>
    Array.isArray(list) &&
    list.every((row: Record<string, unknown> | null) =>
      Object.entries(fields).every(
        ([name, type]) =>
          typeof row?.[name] === type.replace('?', '') ||
          (type.endsWith('?') && row?.[name] === null),
      ),
    );
  return (
    typeof model === 'string' &&
    all(settings, { policy: 'string' }) &&
    all(rows, rowFields) &&
    all(probes, probeFields)
  );
}

/** Before hours of measuring, not after. */
async function requireWritable(file: string): Promise<void> {
  const existing = await stat(file).catch(() => null);
  let reason = existing?.isDirectory() ? 'it is a folder' : '';
  try {
    await access(existing ? file : path.dirname(file), constants.W_OK);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    reason = `${existing ? 'it' : 'its folder'} is not writable (${code})`;
  }
  if (reason === '') return;
  throw new EngineError(
    'unreadableFile',
    `The plot ${file} cannot be written: ${reason}.`,
    'Name a file in a folder that exists and that this user may write to.',
  );
}

function distinct<T>(list: T[]): T[] {
  return [...new Set(list)];
}
