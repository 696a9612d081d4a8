/** The result of `evaluate` as tables for a terminal. */
import type {
  EvaluationPart,
  EvaluationPoint,
  EvaluationResult,
  EvaluationRow,
  ProbeRow,
} from '../engine/evaluation';
import { formatCount, formatCoverage, formatDuration } from '../status/format';
import { columns } from './report';

export function evaluationText(result: EvaluationResult): string {
  const parts: string[] = [];
  if (result.rows.length > 0) parts.push(scoresText(result.rows));
  if (result.probes.length > 0) parts.push(probesText(result.probes));
  return parts.join('\n');
}

/** One measurement in a line, as it comes. */
export function partText(part: EvaluationPart): string {
  if ('row' in part) {
    const { row } = part;
    const time = row.prefillMs === null ? '' : `, ${formatDuration(row.prefillMs)}`;
    return (
      `${pointText(row)}, tail ${formatCount(row.tail)}: ` +
      `density ${densityText(row.sparseDensity)}, KL ${klText(row.kl)}${time}`
    );
  }
  const { probes } = part;
  const found = probes.filter((probe) => probe.found).length;
  return `${pointText(probes[0]!)}: ${found} of ${probes.length} values found`;
}

/** What makes a point of its curve: `ε 0.003`, `α 0.95`, or nothing. */
export function valueText({ epsilon, alpha }: EvaluationPoint): string {
  if (epsilon !== null) return `ε ${epsilon}`;
  return alpha === null ? '' : `α ${alpha}`;
}

/** `8,192 tokens`, `16,384 tokens, RoPE base × 4`. */
export function lengthText({ tokens, ropeBaseScale }: EvaluationPoint): string {
  const rope = ropeBaseScale === 1 ? '' : `, RoPE base × ${ropeBaseScale}`;
  return `${formatCount(tokens)} tokens${rope}`;
}

/** In groups by what `key` returns, in the order of their first members. */
export function grouped<T>(list: readonly T[], key: (item: T) => string): T[][] {
  const groups = new Map<string, T[]>();
  for (const item of list) {
    const group = groups.get(key(item));
    if (group) group.push(item);
    else groups.set(key(item), [item]);
  }
  return [...groups.values()];
}

function pointText(point: EvaluationPoint): string {
  return `${point.text}, ${lengthText(point)}, ${settingText(point)}`;
}

function settingText(point: EvaluationPoint): string {
  return `${point.policy} ${valueText(point)}`.trimEnd();
}

function scoresText(rows: EvaluationRow[]): string {
  const head = ['', 'density', 'sparse', 'coverage', 'p5', 'KL', 'top-1', 'NLL', 'time'];
  return grouped(rows, ({ text, tail, tokens, ropeBaseScale }) =>
    JSON.stringify([text, tokens, ropeBaseScale, tail]),
  )
    .map((group) => {
      const point = group[0]!;
      const lines = group.map((row) => [
        settingText(row),
        densityText(row.density),
        densityText(row.sparseDensity),
        coverageText(row.coverageMean),
        coverageText(row.coverageP5),
        klText(row.kl),
        formatCoverage(row.top1Agreement),
        row.nll.toFixed(4),
        row.prefillMs === null ? '-' : formatDuration(row.prefillMs),
      ]);
      return `${point.text}, ${lengthText(point)}, tail ${formatCount(point.tail)}\n${columns([head, ...lines], 1)}`;
    })
    .join('\n');
}

const depthBins = 5;

function probesText(probes: ProbeRow[]): string {
  const bins = Array.from({ length: depthBins }, (_, bin) => {
    const percent = (edge: number) => Math.round((100 * edge) / depthBins);
    return `${percent(bin)}-${percent(bin + 1)}%`;
  });
  const head = ['', ...bins, 'all', 'found'];
  return grouped(probes, ({ text, tokens, ropeBaseScale }) =>
    JSON.stringify([text, tokens, ropeBaseScale]),
  )
    .map((group) => {
      const lines = grouped(group, settingText).map((own) => {
        const binOf = ({ depth }: ProbeRow) =>
          Math.min(depthBins - 1, Math.floor(depth * depthBins));
        const inBins = bins.map((_, bin) => own.filter((probe) => binOf(probe) === bin));
        const found = own.filter((probe) => probe.found).length;
        return [
          settingText(own[0]!),
          ...[...inBins, own].map(meanLogProbability),
          `${found} of ${own.length}`,
        ];
      });
      const { text, chance } = group[0]!;
      return (
        `${text}, ${lengthText(group[0]!)}: log-probability of planted values by depth ` +
        `(nats; a guess has ${chance.toFixed(1)})\n${columns([head, ...lines], 1)}`
      );
    })
    .join('\n');
}

function meanLogProbability(probes: ProbeRow[]): string {
  if (probes.length === 0) return '-';
  const sum = probes.reduce((total, { logProbability }) => total + logProbability, 0);
  return (sum / probes.length).toFixed(2);
}

function densityText(density: number | null): string {
  return density === null ? '-' : density.toFixed(3);
}

function coverageText(coverage: number | null): string {
  return coverage === null ? '-' : formatCoverage(coverage);
}

function klText(kl: number): string {
  return kl === 0 ? '0' : kl >= 0.0001 ? kl.toFixed(4) : kl.toExponential(1);
}
