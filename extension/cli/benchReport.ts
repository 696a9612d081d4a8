/** What `bench` measured, as a person reads it in a terminal. */
import type { BenchResult, BenchRow, PartTimes } from '../engine/protocol';
import {
  formatBytes,
  formatCount,
  formatCoverage,
  formatPercent,
  formatSpeed,
  partTimes,
  speculationText,
} from '../status/format';
import { columns } from './report';

export function benchText(result: BenchResult): string {
  const { results } = result;
  return [
    `${heading(result)}\n`,
    ...(result.forcedDensity === null
      ? []
      : [
          `FORCED density ${formatPercent(result.forcedDensity)} where attention is sparse` +
            `${result.synthetic ? ', since random weights have no structure to find' : ''}. ` +
            'The columns were sampled, filtered and timed as always, then replaced by drawn ones.\n',
        ]),
    '\n',
    columns([rowHead, ...results.map((row) => rowCells(row))]),
    ...partsTable(results),
    ...results.flatMap(({ speculation, tokens }) =>
      speculation === null
        ? []
        : [`\nBehind ${formatCount(tokens)} tokens, ${speculationText(speculation)}.\n`],
    ),
    `\nMemory: ${formatBytes(result.estimatedBytes)} estimated for a context of ` +
      `${formatCount(result.contextTokens)}, ` +
      `${formatBytes(Math.max(...results.map((row) => row.peakBytes)))} at the peak.\n`,
  ].join('');
}

function heading(result: BenchResult): string {
  const { model, weights, synthetic, device, kvCache, params, runs } = result;
  return [
    `${model}, ${synthetic ? 'random ' : ''}${weights} weights on ${device}`,
    `${kvCache} KV cache`,
    `policy ${params.policy}`,
    ...(runs > 1 ? [`medians of ${runs}`] : []),
  ].join(', ');
}

const rowHead = [
  ...['tokens', 'reused', 'TTFT', 'prefill', 'speed', 'density', 'sparse', 'coverage'],
  ...['decode', 'a token', 'peak'],
];

function rowCells(row: BenchRow): string[] {
  const { decodeTokensPerSecond: decode } = row;
  return [
    formatCount(row.tokens),
    row.reusedTokens === 0 ? '-' : formatCount(row.reusedTokens),
    precise(row.ttftMs),
    precise(row.prefillMs),
    formatSpeed(row.tokensPerSecond),
    formatPercent(row.density),
    row.sparseDensity === null ? '-' : formatPercent(row.sparseDensity),
    row.coverageMean === null ? '-' : formatCoverage(row.coverageMean),
    decode === null ? '-' : formatSpeed(decode),
    decode === null ? '-' : `${(1000 / decode).toFixed(2)} ms`,
    formatBytes(row.peakBytes),
  ];
}

/** Measurements are compared: three digits behind the point, unlike what people are told. */
function precise(ms: number): string {
  return ms < 1000 ? `${ms.toFixed(1)} ms` : `${(ms / 1000).toFixed(3)} s`;
}

/** Where each prefill went, where the device tells. */
function partsTable(results: readonly BenchRow[]): string[] {
  const timed = results.filter((row): row is BenchRow & { times: PartTimes } => row.times !== null);
  if (timed.length === 0) return [];
  const names = partTimes(timed[0]!.times).map(({ name }) => name);
  const rows = timed.map(({ tokens, times }) => [
    formatCount(tokens),
    ...partTimes(times).map(({ ms }) => `${ms.toFixed(ms < 10 ? 2 : 1)} ms`),
  ]);
  return ['\nPrefill by part, from the GPU:\n', columns([['tokens', ...names], ...rows])];
}
