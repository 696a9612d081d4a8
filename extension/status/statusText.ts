/** What the one status bar item says about a conversation. Pure. */
import type { Entry } from '../chat/conversation';
import { totalBytes, type Stats } from '../engine/protocol';
import {
  errorText,
  fallbackText,
  filesLine,
  formatBytes,
  formatCount,
  formatCoverage,
  formatDuration,
  formatEstimate,
  formatPercent,
  formatSpeed,
  progressText,
  resultText,
  thinkingText,
} from './format';

export interface StatusText {
  /** With codicons, e.g. `$(sync~spin) Prefill 43% · 12 s`. */
  text: string;
  /** Lines of plain text. */
  tooltip: string[];
  /** For screen readers: the text without icons. */
  label: string;
  /** Where a click leads: to the figures, or to where something has to be decided. */
  opens: 'stats' | 'chat';
}

const openStats = 'Click for statistics.';

/** The oldest question under way decides; when none is, the last one that ended. */
export function statusText(entries: readonly Entry[]): StatusText {
  const open = entries.filter((entry) => entry.state === 'running' || entry.state === 'confirming');
  const current = open[0] ?? entries.at(-1);
  if (current === undefined) {
    return status('$(telescope)', 'Longsight', [
      'Ask a question about the whole workspace.',
      openStats,
    ]);
  }
  const waiting =
    open.length > 1
      ? [`${open.length - 1} more ${open.length === 2 ? 'question waits' : 'questions wait'}.`]
      : [];
  const files =
    current.files === null
      ? []
      : [`${filesLine(current.files, open.length > 0 ? 'Reading' : 'Read')}.`];
  switch (current.state) {
    case 'running': {
      const { phase, perSecond } = current.progress;
      const speed = phase === 'prefill' && perSecond > 0 ? [formatSpeed(perSecond)] : [];
      return status('$(sync~spin)', progressText(current.progress), [
        `Longsight: ${shorten(current.question)}`,
        ...files,
        ...speed,
        ...waiting,
        openStats,
      ]);
    }
    case 'confirming':
      return leadToChat(
        '$(question)',
        `About ${formatEstimate(current.confirmation?.predictedPrefillMs ?? 0)}: start?`,
        [
          'The prefill is long: choose Start, Fewer Files or Cancel in the chat.',
          ...files,
          ...waiting,
        ],
      );
    case 'done':
      return current.stats === null
        ? status('$(telescope)', 'Longsight', [openStats])
        : status('$(telescope)', resultText(current.stats), [
            ...statsTooltip(current.stats),
            ...files,
            openStats,
          ]);
    case 'stopped':
      return status('$(debug-stop)', 'Stopped', [
        'The last question was stopped. What was read is kept for the next one.',
        openStats,
      ]);
    case 'failed':
      return leadToChat('$(error)', 'Longsight failed', [
        current.error === null ? 'Unknown error.' : errorText(current.error),
      ]);
  }
}

function statsTooltip(stats: Stats): string[] {
  const { density, sparseDensity, coverageMean, coverageP5 } = stats.attention;
  const lines = [
    `Time to first token ${formatDuration(stats.ttftMs)}, of it prefill ${formatDuration(stats.phases.prefillMs)} at ${formatSpeed(stats.prefillTokensPerSecond)}.`,
    `${formatPercent(density)} of dense attention was computed${
      sparseDensity === null
        ? '; nothing was sparse'
        : `; ${formatPercent(sparseDensity)} where it was sparse`
    }.`,
  ];
  if (stats.thinking !== null) lines.push(`Thought: ${thinkingText(stats.thinking)}.`);
  if (coverageMean !== null) {
    const p5 = coverageP5 === null ? '' : `, 5th percentile ${formatCoverage(coverageP5)}`;
    lines.push(`Coverage: mean ${formatCoverage(coverageMean)}${p5}.`);
  }
  lines.push(
    `${formatCount(stats.reusedTokens)} tokens reused, ${formatCount(stats.computedTokens)} computed.`,
    `Memory ${formatBytes(totalBytes(stats.memory))} on ${stats.device}.`,
    ...(stats.fallback === '' ? [] : [fallbackText(stats.fallback)]),
  );
  return lines;
}

function status(icon: string, text: string, tooltip: string[]): StatusText {
  return {
    text: `${icon} ${text}`,
    tooltip,
    label: text.startsWith('Longsight') ? text : `Longsight: ${text}`,
    opens: 'stats',
  };
}

function leadToChat(icon: string, text: string, tooltip: string[]): StatusText {
  return { ...status(icon, text, [...tooltip, 'Click to open the chat.']), opens: 'chat' };
}

function shorten(question: string): string {
  const line = question.replace(/\s+/g, ' ');
  return line.length > 80 ? `${line.slice(0, 79)}…` : line;
}
