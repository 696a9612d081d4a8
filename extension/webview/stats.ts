/** The statistics view: everything it shows is in the stats message of one answer. */
import { totalBytes, type PartTimes, type Stats } from '../engine/protocol';
import type { FromStats, StatsOfQuestion, ToStats } from '../status/messages';
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
import { button, el } from './dom';
import { heatMap } from './heatMap';

const api = acquireVsCodeApi();
const send = (message: FromStats): void => api.postMessage(message);
const root = document.getElementById('root') as HTMLElement;

window.addEventListener('message', (event: MessageEvent<ToStats>) => draw(event.data.shown));
send({ type: 'ready' });

function draw(shown: StatsOfQuestion | null): void {
  root.replaceChildren(...(shown === null ? emptyState() : page(shown)));
}

function emptyState(): HTMLElement[] {
  return [
    el('h1', {}, 'Longsight Stats'),
    el(
      'p',
      {},
      'Nothing has been measured yet. The figures of an answer appear here as soon as it is complete.',
    ),
    button('Ask Workspace…', 'primary', () => send({ type: 'ask' })),
  ];
}

function page({ question, stats }: StatsOfQuestion): HTMLElement[] {
  return [
    el('h1', {}, 'Longsight Stats'),
    el('p', { class: 'question' }, question),
    headline(stats),
    section('Time to first token', ...timeToFirstToken(stats)),
    ...(stats.times === null ? [] : [section('Prefill on the GPU', prefillParts(stats.times))]),
    section('Attention density by layer and head', ...density(stats)),
    el(
      'div',
      { class: 'columns' },
      section(
        'Tokens and speed',
        facts([
          ['Prompt', `${formatCount(stats.promptTokens)} tokens`],
          ['Reused from the cache', `${formatCount(stats.reusedTokens)} tokens`],
          ['Computed', `${formatCount(stats.computedTokens)} tokens`],
          ['Prefill', formatSpeed(stats.prefillTokensPerSecond)],
          ['Decode', formatSpeed(stats.decodeTokensPerSecond)],
          ...(stats.speculation === null
            ? []
            : [['Guessed ahead', speculationText(stats.speculation)] satisfies Fact]),
          ...(stats.thinking === null
            ? []
            : [['Thought', thinkingText(stats.thinking)] satisfies Fact]),
        ]),
      ),
      section(
        'Memory',
        facts([
          ['Weights', formatBytes(stats.memory.weightBytes)],
          [`KV cache (${stats.kvCache})`, formatBytes(stats.memory.kvBytes)],
          ['Scratch', formatBytes(stats.memory.scratchBytes)],
          ...(stats.memory.fixedBytes === 0
            ? []
            : [['Driver and kernels', formatBytes(stats.memory.fixedBytes)] satisfies Fact]),
          ['Together', formatBytes(totalBytes(stats.memory))],
        ]),
      ),
      section(
        'Model and parameters',
        facts([
          ['Model', stats.model],
          ['Device', stats.device],
          ...(stats.fallback === '' ? [] : [['Why not a GPU', stats.fallback] satisfies Fact]),
          ...Object.entries(stats.params).map(([name, value]): Fact => [name, String(value)]),
        ]),
      ),
    ),
  ];
}

function section(title: string, ...content: HTMLElement[]): HTMLElement {
  return el('section', { 'aria-label': title }, el('h2', {}, title), ...content);
}

/** The figures that matter, with what they mean. */
function headline(stats: Stats): HTMLElement {
  const { density: all, sparseDensity, coverageMean, coverageP5 } = stats.attention;
  const tile = (name: string, value: string, meaning: string) =>
    el(
      'div',
      { class: 'tile' },
      el('dt', {}, name),
      el('dd', {}, value),
      el('dd', { class: 'muted' }, meaning),
    );
  return el(
    'dl',
    { class: 'tiles' },
    tile('TTFT', formatDuration(stats.ttftMs), 'from the question to the first token'),
    tile('Density', formatPercent(all), 'of the attention pairs were computed'),
    tile(
      'Sparse density',
      sparseDensity === null ? 'none' : formatPercent(sparseDensity),
      sparseDensity === null ? 'no part of the prompt was sparse' : 'where attention was sparse',
    ),
    tile(
      'Coverage, mean',
      coverageMean === null ? 'not measured' : formatCoverage(coverageMean),
      coverageMean === null ? 'nothing was sparse' : 'of the attention mass was kept',
    ),
    tile(
      'Coverage, 5th percentile',
      coverageP5 === null ? 'not measured' : formatCoverage(coverageP5),
      coverageP5 === null ? 'nothing was sparse' : '95% of the audited samples keep at least this',
    ),
  );
}

/** Of a time nobody wants to know more digits. */
function phaseShare(share: number): string {
  return share > 0 && share < 0.001 ? '< 0.1%' : formatPercent(share);
}

const phaseLabels = [
  ['queueMs', 'Queue'],
  ['loadMs', 'Load'],
  ['scanMs', 'Scan'],
  ['tokenizeMs', 'Tokenize'],
  ['prefillMs', 'Prefill'],
  ['firstTokenMs', 'First token'],
] as const;

function timeToFirstToken(stats: Stats): HTMLElement[] {
  const total = Math.max(stats.ttftMs, 1e-9);
  const bar = el('div', { class: 'phase-bar', 'aria-hidden': 'true' });
  const rows = phaseLabels.map(([key, label], index) => {
    const ms = stats.phases[key];
    const share = ms / total;
    const piece = el('div', {
      class: `phase phase-${index}`,
      title: `${label}: ${formatDuration(ms)}, ${phaseShare(share)}`,
    });
    piece.style.flexGrow = String(share);
    if (ms > 0) bar.append(piece);
    return el(
      'tr',
      {},
      el(
        'th',
        { scope: 'row' },
        el('span', { class: `key phase-${index}`, 'aria-hidden': 'true' }),
        label,
      ),
      el('td', {}, formatDuration(ms)),
      el('td', {}, phaseShare(share)),
    );
  });
  const sum = el(
    'tr',
    { class: 'sum' },
    el('th', { scope: 'row' }, 'TTFT'),
    el('td', {}, formatDuration(stats.ttftMs)),
    el('td', {}, ''),
  );
  const table = el(
    'table',
    { class: 'figures' },
    el(
      'thead',
      {},
      el('tr', {}, ...['Phase', 'Time', 'Share'].map((name) => el('th', { scope: 'col' }, name))),
    ),
    el('tbody', {}, ...rows, sum),
  );
  return [bar, table];
}

function prefillParts(times: PartTimes): HTMLElement {
  const parts = partTimes(times);
  const total = Math.max(
    1e-9,
    parts.reduce((sum, { ms }) => sum + ms, 0),
  );
  return el(
    'table',
    { class: 'figures' },
    el(
      'thead',
      {},
      el('tr', {}, ...['Part', 'Time', 'Share'].map((name) => el('th', { scope: 'col' }, name))),
    ),
    el(
      'tbody',
      {},
      ...parts.map(({ name, ms }) =>
        el(
          'tr',
          {},
          el('th', { scope: 'row' }, name.slice(0, 1).toUpperCase() + name.slice(1)),
          el('td', {}, formatDuration(ms)),
          el('td', {}, phaseShare(ms / total)),
        ),
      ),
    ),
  );
}

function density(stats: Stats): HTMLElement[] {
  const { layers, sparseDensity } = stats.attention;
  if (sparseDensity === null) {
    const reason =
      stats.params.policy === 'dense'
        ? 'The policy is dense: every pair was computed.'
        : `No segment was sparse: prompts up to ${formatCount(stats.params.denseBelowTokens)} tokens (denseBelowTokens) are dense.`;
    return [el('p', {}, reason)];
  }
  return [heatMap(layers)];
}

type Fact = [name: string, value: string];

function facts(list: Fact[]): HTMLElement {
  return el(
    'table',
    { class: 'figures' },
    el(
      'tbody',
      {},
      ...list.map(([name, value]) =>
        el('tr', {}, el('th', { scope: 'row' }, name), el('td', {}, value)),
      ),
    ),
  );
}
