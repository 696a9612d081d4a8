/** Results as a person reads them in a terminal. */
import type { AskAnswer } from '../engine/client';
import { totalBytes } from '../engine/protocol';
import type {
  AttentionStats,
  CalibrateResult,
  CalibrationPoint,
  Citation,
  DoctorResult,
  KvCacheType,
  MemoryStats,
  PackResult,
  PartTimes,
  PhaseTimes,
  ScoreResult,
  Stats,
} from '../engine/protocol';
import {
  formatBytes,
  formatCount,
  formatCoverage,
  formatDuration,
  formatPercent,
  formatSpeed,
  partTimes,
  speculationText,
  thinkingText,
} from '../status/format';
import { visibleLine } from './visible';

export function citationsText(answer: AskAnswer): string {
  if (answer.citations.length === 0) return '';
  return [
    '',
    'Citations:',
    ...answer.citations.map((citation) => `  ${citationText(citation)}`),
    '',
  ].join('\n');
}

function citationText(citation: Citation): string {
  const { path, startLine, endLine, status } = citation;
  const range = startLine === endLine ? `${startLine}` : `${startLine}-${endLine}`;
  const place = status === 'verified' ? `${visibleLine(path)}:${range}` : visibleLine(path);
  const quote = citation.quote === '' ? '' : ` "${citation.quote}"`;
  return `${status.padEnd(9)} ${place}${quote}`;
}

export function statsText(stats: Stats): string {
  const { memory } = stats;
  return block([
    ['TTFT', `${formatDuration(stats.ttftMs)} = ${phasesText(stats.phases)}`],
    [
      'Prompt',
      `${formatCount(stats.promptTokens)} tokens: ${formatCount(stats.reusedTokens)} reused, ` +
        `${formatCount(stats.computedTokens)} computed at ${formatSpeed(stats.prefillTokensPerSecond)}`,
    ],
    ...(stats.thinking === null
      ? []
      : [['Thought', thinkingText(stats.thinking)] satisfies [string, string]]),
    [
      'Answer',
      [
        formatSpeed(stats.decodeTokensPerSecond),
        ...(stats.speculation === null ? [] : [speculationText(stats.speculation)]),
      ].join(', '),
    ],
    ...(stats.times === null
      ? []
      : [['Prefill', partsText(stats.times)] satisfies [string, string]]),
    ['Attention', `${stats.params.policy}: ${attentionText(stats.attention)}`],
    ['Memory', `${formatBytes(totalBytes(memory))}: ${memoryParts(memory, stats.kvCache)}`],
    ['Model', `${stats.model} on ${stats.device}`],
    ...(stats.calibration === undefined
      ? []
      : [['Calibration', stats.calibration] satisfies [string, string]]),
  ]);
}

function memoryParts(memory: MemoryStats, kvCache: KvCacheType): string {
  const parts = [
    `weights ${formatBytes(memory.weightBytes)}`,
    `${kvCache} KV cache ${formatBytes(memory.kvBytes)}`,
    `scratch ${formatBytes(memory.scratchBytes)}`,
  ];
  if (memory.fixedBytes > 0) parts.push(`driver and kernels ${formatBytes(memory.fixedBytes)}`);
  return parts.join(', ');
}

function partsText(times: PartTimes): string {
  return partTimes(times)
    .map(({ name, ms }) => `${name} ${formatDuration(ms)}`)
    .join(', ');
}

function phasesText(phases: PhaseTimes): string {
  return [
    `queue ${formatDuration(phases.queueMs)}`,
    `load ${formatDuration(phases.loadMs)}`,
    `scan ${formatDuration(phases.scanMs)}`,
    `tokenize ${formatDuration(phases.tokenizeMs)}`,
    `prefill ${formatDuration(phases.prefillMs)}`,
    `first token ${formatDuration(phases.firstTokenMs)}`,
  ].join(' + ');
}

type Attention = Omit<AttentionStats, 'layers'>;

function attentionText(attention: Attention): string {
  const parts = [`density ${formatPercent(attention.density)}`];
  if (attention.sparseDensity === null) return `${parts[0]} (nothing was sparse)`;
  parts.push(`sparse rows ${formatPercent(attention.sparseDensity)}`);
  if (attention.coverageMean !== null) {
    const p5 =
      attention.coverageP5 === null
        ? ''
        : ` (5th percentile ${formatCoverage(attention.coverageP5)})`;
    parts.push(`coverage ${formatCoverage(attention.coverageMean)}${p5}`);
  }
  if (attention.calibrated) parts.push('calibrated');
  return parts.join(', ');
}

export function packText(result: PackResult): string {
  const width = Math.max(6, ...result.files.map((file) => formatCount(file.tokens).length));
  const lines = result.files.map(
    ({ tokens, tier, reason, path }) =>
      `${formatCount(tokens).padStart(width)}  ${tier.padEnd(4)}  ${visibleLine(path)}  (${reason})`,
  );
  const count = (tier: string) => result.files.filter((file) => file.tier === tier).length;
  return [
    `${'tokens'.padStart(width)}  tier  file`,
    ...lines,
    '',
    `${formatCount(result.totalTokens)} tokens: ${count('full')} files in full, ` +
      `${count('path')} by path, ${count('out')} left out`,
    ...(result.text === undefined ? [] : ['', result.text]),
    '',
  ].join('\n');
}

export function calibrateText(result: CalibrateResult): string {
  const point = ({ density, coverage }: CalibrationPoint) =>
    `sparse rows ${formatPercent(density)}, coverage ${formatCoverage(coverage)}`;
  const kl = result.kl === null ? '' : `, KL ${result.kl.toExponential(3)}`;
  return block([
    ['Texts', result.textTokens.map((tokens) => `${formatCount(tokens)} tokens`).join(', ')],
    ['One epsilon', point(result.plain)],
    ['By head', `${point(result.chosen)}${kl}`],
    ['Written', result.path],
  ]);
}

export function scoreText(result: ScoreResult): string {
  return block([
    ['Tokens', formatCount(result.tokens)],
    ['NLL', `${result.nll.toFixed(4)} (perplexity ${result.perplexity.toFixed(3)})`],
    ['Attention', attentionText(result)],
    ...(result.kl === undefined ? [] : [['KL', result.kl.toExponential(3)] as [string, string]]),
    ...(result.top1Agreement === undefined
      ? []
      : [['Top-1', `${formatCoverage(result.top1Agreement)} as dense`] as [string, string]]),
  ]);
}

export function doctorText(result: DoctorResult): string {
  const rows: [string, string][] = [
    ['Longsight', `${result.version} on ${result.platform}`],
    ...result.devices.map(({ name, usable, reason }): [string, string] => [
      `Device ${name}`,
      `${usable ? 'usable' : 'not usable'}: ${reason}`,
    ]),
    ['CPU', result.cpuFeatures.join(' ') || 'unknown'],
    [
      'Kernels',
      `attention ${result.kernels.attention || 'none'}, linear ${result.kernels.linear || 'none'}`,
    ],
  ];
  if (result.model) {
    const { name, architecture, layers, heads, kvHeads, headDim, fileType, path } = result.model;
    rows.push(
      ['Model', `${name} (${path})`],
      [
        '',
        `${architecture}, ${fileType}, ${layers} layers, ${heads}/${kvHeads} heads of ${headDim}, ` +
          `context ${formatCount(result.model.contextTokens)}`,
      ],
    );
  }
  for (const memory of result.memory) {
    rows.push([
      result.memory.length === 1 ? 'Memory' : `Memory ${memory.device}`,
      `${formatBytes(totalBytes(memory))} for ${formatCount(memory.contextTokens)} tokens ` +
        `(${memoryParts(memory, memory.kvCache)}), ${formatBytes(memory.availableBytes)} available: ` +
        (memory.fits ? 'fits' : `at most ${formatCount(memory.largestContextTokens)} tokens fit`),
    ]);
  }
  const { folder, files, bytes } = result.sessions;
  rows.push(['Sessions', `${files} saved, ${formatBytes(bytes)}, in ${folder}`]);
  for (const problem of result.problems) {
    rows.push(['Problem', `${problem.message} ${problem.action}`]);
  }
  return block(rows);
}

/** A table: cells to the right, the first `left` columns to the left. */
export function columns(rows: string[][], left = 0): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map((row) => {
      const cells = row.map((cell, column) =>
        column < left ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!),
      );
      return `${cells.join('  ').trimEnd()}\n`;
    })
    .join('');
}

function block(rows: [string, string][]): string {
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}\n`).join('');
}
