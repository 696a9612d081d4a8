/** Figures as people read them. Pure: status bar, statistics and chat use the same words. */
import type {
  EngineErrorInfo,
  FileCounts,
  PartTimes,
  Phase,
  SpeculationStats,
  Stats,
  ThinkingStats,
} from '../engine/protocol';

/** `34 ms`, `0.42 s`, `3.2 s`, `12 s`, `1 min 5 s`, `14 min`, `2 h 5 min`. */
export function formatDuration(ms: number): string {
  if (ms < 99.5) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 0.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 5 && whole % 60 !== 0) return `${minutes} min ${whole % 60} s`;
  const rounded = Math.round(whole / 60);
  if (rounded < 60) return `${rounded} min`;
  const rest = rounded % 60;
  return rest === 0 ? `${rounded / 60} h` : `${Math.floor(rounded / 60)} h ${rest} min`;
}

/** Whole seconds without a decimal that would only be noise: `5 s`, not `5.0 s`. */
function formatWhole(ms: number): string {
  return ms < 60_000 ? `${Math.round(ms / 1000)} s` : formatDuration(ms);
}

/** A share in [0, 1] as `14%`; small shares keep two significant digits: `0.42%`. */
export function formatPercent(share: number): string {
  const percent = share * 100;
  if (percent === 0) return '0%';
  if (percent < 0.995) return `${Number(percent.toPrecision(2))}%`;
  return percent < 9.95 ? `${Number(percent.toFixed(1))}%` : `${Math.round(percent)}%`;
}

/** Coverage lies close to 1, where whole percents hide what matters: `98.1%`, never a false `100%`. */
export function formatCoverage(share: number): string {
  if (share >= 1) return '100%';
  return `${Math.min(share * 100, 99.99).toFixed(share > 0.999 ? 2 : 1)}%`;
}

/** `1,234,567`. */
export function formatCount(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

/** `98.4 MiB`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 || value >= 99.95 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** `2,310 tok/s`, `8.4 tok/s`. */
export function formatSpeed(tokensPerSecond: number): string {
  return `${tokensPerSecond < 9.95 ? tokensPerSecond.toFixed(1) : formatCount(tokensPerSecond)} tok/s`;
}

/** Where a running question is. */
export interface Progress {
  phase: Phase;
  /** Questions that run before this one; only for `queue`. */
  ahead: number;
  /** Share of the phase that is done; null = not known. */
  share: number | null;
  etaMs: number | null;
  /** Tokens (or files, bytes) a second in this phase; 0 = not known. */
  perSecond: number;
}

const phaseNames: Record<Phase, string> = {
  queue: 'Waiting',
  load: 'Loading model',
  scan: 'Reading files',
  tokenize: 'Tokenizing',
  prefill: 'Prefill',
  firstToken: 'First token',
  thinking: 'Thinking',
  decode: 'Answering',
  save: 'Saving the session',
  done: 'Done',
};

/** `Prefill 43% · 12 s`. */
export function progressText(progress: Progress): string {
  const name = phaseNames[progress.phase];
  if (progress.phase === 'queue') {
    return progress.ahead > 0
      ? `${name} for ${progress.ahead} ${progress.ahead === 1 ? 'question' : 'questions'}`
      : name;
  }
  // Nobody knows how long an answer will be: a share of the longest one would mislead.
  const writing = progress.phase === 'thinking' || progress.phase === 'decode';
  const known = progress.share !== null && !writing;
  const parts = [!known ? name : `${name} ${Math.floor(Math.min(1, progress.share ?? 0) * 100)}%`];
  if (writing) {
    if (progress.perSecond > 0) parts.push(formatSpeed(progress.perSecond));
  } else if (progress.etaMs !== null) {
    parts.push(formatWhole(Math.max(1000, Math.ceil(progress.etaMs / 1000) * 1000)));
  }
  return parts.join(' · ');
}

/** `Thinking… 3.2 s`, afterwards `Thought for 4.1 s`. */
export function thoughtLabel(ms: number, thinking: boolean): string {
  const time = ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : formatDuration(ms);
  return thinking ? `Thinking… ${time}` : `Thought for ${time}`;
}

/** `312 tokens in 4.1 s, after the first token`. */
export function thinkingText({ ms, tokens }: ThinkingStats): string {
  return `${formatCount(tokens)} tokens in ${formatDuration(ms)}, after the first token`;
}

/** `82 of 120 guessed tokens were right (68%)`. */
export function speculationText({ draftedTokens, acceptedTokens }: SpeculationStats): string {
  const share = formatPercent(acceptedTokens / Math.max(1, draftedTokens));
  return `${formatCount(acceptedTokens)} of ${formatCount(draftedTokens)} guessed tokens were right (${share})`;
}

const partNames: readonly [keyof PartTimes, string][] = [
  ['linearMs', 'linear'],
  ['expandMs', 'expand'],
  ['stage1Ms', 'stage 1'],
  ['stage2Ms', 'stage 2'],
  ['stage3Ms', 'stage 3'],
  ['auditMs', 'audit'],
  ['restMs', 'rest'],
];

/** The parts of a prefill on a GPU, in order, as people call them. */
export function partTimes(times: PartTimes): { name: string; ms: number }[] {
  return partNames.map(([key, name]) => ({ name, ms: times[key] }));
}

/** The one line for whoever has a GPU that is not used. */
export function fallbackText(fallback: string): string {
  return `On the CPU: ${fallback}`;
}

/** `TTFT 3.2 s · 14% attention`. */
export function resultText(stats: Stats): string {
  return `TTFT ${formatDuration(stats.ttftMs)} · ${formatPercent(stats.attention.density)} attention`;
}

/** The line under an answer. */
export function statsLine(stats: Stats): string {
  const { coverageMean, coverageP5 } = stats.attention;
  const parts = [resultText(stats)];
  if (coverageMean !== null) {
    const p5 = coverageP5 === null ? '' : ` (p5 ${formatCoverage(coverageP5)})`;
    parts.push(`coverage ${formatCoverage(coverageMean)}${p5}`);
  }
  const reused = stats.reusedTokens > 0 ? ` (${formatCount(stats.reusedTokens)} reused)` : '';
  parts.push(`${formatCount(stats.promptTokens)} tokens${reused}`);
  if (stats.thinking !== null) parts.push(`thought ${formatDuration(stats.thinking.ms)}`);
  if (stats.decodeTokensPerSecond > 0) parts.push(formatSpeed(stats.decodeTokensPerSecond));
  return parts.join(' · ');
}

/** `Read 37 of 412 files · 375 by path only`; `Reading …` before the answer is there. */
export function filesLine(files: FileCounts, verb: 'Read' | 'Reading' = 'Read'): string {
  const total = files.full + files.path + files.out;
  if (files.path === 0 && files.out === 0) {
    return `${verb} ${files.full === 1 ? 'the only file' : `all ${formatCount(total)} files`}`;
  }
  const parts = [`${verb} ${formatCount(files.full)} of ${formatCount(total)} files`];
  if (files.path > 0) parts.push(`${formatCount(files.path)} by path only`);
  if (files.out > 0) parts.push(`${formatCount(files.out)} left out`);
  return parts.join(' · ');
}

/** A prediction is good for about two digits: `35 s`, `2 min`, `14 min`, `2 h 5 min`. */
export function formatEstimate(ms: number): string {
  const fiveSeconds = 5000;
  const minute = 60_000;
  const step = ms < 1.5 * minute ? fiveSeconds : minute;
  return formatWhole(Math.max(fiveSeconds, Math.round(ms / step) * step));
}

/** What a person is asked before a long prefill. */
export function confirmText(predictedPrefillMs: number, computedTokens: number): string {
  return `Reading ${formatCount(computedTokens)} tokens takes about ${formatEstimate(predictedPrefillMs)}.`;
}

/** Message and way out in one line. */
export function errorText(error: EngineErrorInfo): string {
  return error.action === '' ? error.message : `${error.message} ${error.action}`;
}
