/**
 * KL against density as SVG: one panel a (text, length, tail), one curve a policy, all panels with the
 * same axes. It brings its own background, in the reader's light or dark scheme.
 */
import path from 'node:path';
import type { EvaluationResult, EvaluationRow } from '../engine/evaluation';
import { formatCount } from '../status/format';
import { grouped, lengthText, valueText } from './evaluationTable';

const panel = { width: 300, height: 250, left: 70, right: 20, top: 46, bottom: 48 };
const header = 84;
const margin = 16;
const mostColumns = 4;

/** Curves differ by colour, by dash and by mark: one of them is always seen. */
const looks = [
  { light: '#0a5fbf', dark: '#6cb2ff', dash: '', mark: 'circle' },
  { light: '#b3400a', dark: '#ff9e64', dash: '7 3', mark: 'square' },
  { light: '#6a3fa0', dark: '#c9a6ff', dash: '2 3', mark: 'triangle' },
  { light: '#1c7a3d', dark: '#7bd88f', dash: '9 3 2 3', mark: 'diamond' },
] as const;

interface Point {
  density: number;
  kl: number;
  row: EvaluationRow;
}

interface Curve {
  policy: string;
  look: number;
  points: Point[];
}

interface Panel {
  title: string;
  subtitle: string;
  curves: Curve[];
}

interface Scale {
  ticks: number[];
  min: number;
  max: number;
  /** 0 to 1 within the axis. */
  of: (value: number) => number;
}

/** A standalone SVG document. Points without sparse rows or without any loss have no place in it. */
export function evaluationPlot(result: EvaluationResult): string {
  const policies = [...new Set(result.rows.filter(isPlotted).map(({ policy }) => policy))];
  const panels = panelsOf(result.rows, policies);
  const points = panels.flatMap(({ curves }) => curves.flatMap((curve) => curve.points));
  const x = linearScale(points.map(({ density }) => density));
  const y = logScale(points.map(({ kl }) => kl));

  const texts = new Set(result.rows.map(({ text }) => text)).size;
  const perRow = Math.max(1, Math.min(mostColumns, texts > 1 ? texts : panels.length));
  const width = Math.max(2 * margin + perRow * panel.width, 720);
  const height = header + Math.max(1, Math.ceil(panels.length / perRow)) * panel.height + margin;
  const title = 'KL from dense attention against density';
  const drawn = panels.map((each, index) => {
    const left = margin + (index % perRow) * panel.width;
    const top = header + Math.floor(index / perRow) * panel.height;
    return drawPanel(each, left, top, x, y);
  });
  const empty =
    points.length > 0
      ? ''
      : text(width / 2, header + panel.height / 2, 'No sparse measurement to show.', 'middle');
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" ` +
      `height="${height}" role="img" aria-labelledby="title description">`,
    `<title id="title">${escaped(title)}</title>`,
    `<desc id="description">${escaped(describe(panels))}</desc>`,
    `<style>${style()}</style>`,
    `<rect class="ground" width="${width}" height="${height}"/>`,
    text(margin, 28, title, 'start', 'heading'),
    text(
      margin,
      48,
      `${result.model}. Down and left is better. Numbers at the points: ε of peak, α of the others.`,
    ),
    legend(policies),
    ...drawn,
    empty,
    '</svg>',
    '',
  ]
    .filter((line, index, all) => line !== '' || index === all.length - 1)
    .join('\n');
}

function isPlotted({ kl, sparseDensity }: EvaluationRow): boolean {
  return sparseDensity !== null && kl > 0;
}

function panelsOf(rows: EvaluationRow[], policies: string[]): Panel[] {
  // All texts of one length and tail stand side by side.
  const byLength = grouped(rows, ({ tokens, ropeBaseScale, tail }) =>
    JSON.stringify([tokens, ropeBaseScale, tail]),
  );
  return byLength
    .flatMap((group) => grouped(group, (row) => row.text))
    .map((group) => {
      const first = group[0]!;
      const plotted = group.filter(isPlotted);
      const curves = grouped(plotted, (row) => row.policy).map((own) => ({
        policy: own[0]!.policy,
        look: policies.indexOf(own[0]!.policy) % looks.length,
        points: own
          .map((row) => ({ density: row.sparseDensity!, kl: row.kl, row }))
          .sort((a, b) => a.density - b.density),
      }));
      return {
        title: path.basename(first.text),
        subtitle: `${lengthText(first)}, tail ${formatCount(first.tail)}`,
        curves,
      };
    });
}

function linearScale(values: number[]): Scale {
  const most = Math.max(0.05, ...values);
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((each) => most / each <= 5.5) ?? 0.5;
  const max = Math.min(1, Math.ceil((most * 1.02) / step) * step);
  const ticks: number[] = [];
  for (let i = 0; i * step <= max + 1e-9; i++) ticks.push(i * step);
  return { ticks, min: 0, max, of: (value) => value / max };
}

function logScale(values: number[]): Scale {
  const known = values.length > 0 ? values : [0.001, 0.01];
  const steps = [1, 2, 5];
  const ticks: number[] = [];
  const least = Math.min(...known) * 0.95;
  const most = Math.max(...known) * 1.05;
  for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power++) {
    for (const step of steps) ticks.push(Number(`${step}e${power}`));
  }
  // One tick below the values, one above.
  const from = Math.max(0, ticks.findIndex((tick) => tick > least) - 1);
  const to = ticks.findIndex((tick) => tick >= most);
  const shown = ticks.slice(from, to + 1);
  const min = shown[0]!;
  const max = shown.at(-1)!;
  return {
    // Over many decades the powers of ten are enough.
    ticks: shown.length <= 9 ? shown : shown.filter((tick) => /^1e|^10*$|^0\.0*1$/.test(`${tick}`)),
    min,
    max,
    of: (value) => Math.log(value / min) / Math.log(max / min),
  };
}

function drawPanel(each: Panel, left: number, top: number, x: Scale, y: Scale): string {
  const plotLeft = left + panel.left;
  const plotRight = left + panel.width - panel.right;
  const plotTop = top + panel.top;
  const plotBottom = top + panel.height - panel.bottom;
  const atX = (density: number) => plotLeft + x.of(density) * (plotRight - plotLeft);
  const atY = (kl: number) => plotBottom - y.of(kl) * (plotBottom - plotTop);

  const grid = [
    ...y.ticks.flatMap((tick) => [
      line(plotLeft, atY(tick), plotRight, atY(tick), 'grid'),
      text(plotLeft - 6, atY(tick) + 4, klTick(tick), 'end', 'tick'),
    ]),
    ...x.ticks.flatMap((tick) => [
      line(atX(tick), plotTop, atX(tick), plotBottom, 'grid'),
      text(atX(tick), plotBottom + 15, `${Math.round(tick * 100)}`, 'middle', 'tick'),
    ]),
    line(plotLeft, plotTop, plotLeft, plotBottom, 'axis'),
    line(plotLeft, plotBottom, plotRight, plotBottom, 'axis'),
  ];
  const middleY = (plotTop + plotBottom) / 2;
  const names = [
    text((plotLeft + plotRight) / 2, plotBottom + 33, 'density of sparse rows (%)', 'middle'),
    `<text class="label" text-anchor="middle" transform="translate(${left + 12} ${middleY}) rotate(-90)">KL in nats, log scale</text>`,
    text(left + 6, top + 18, each.title, 'start', 'title'),
    text(left + 6, top + 35, each.subtitle),
  ];
  const curves = each.curves.map(({ look, points }) => {
    const places = points.map((point) => ({ x: atX(point.density), y: atY(point.kl), point }));
    const way = places.map((place) => `${fixed(place.x)},${fixed(place.y)}`).join(' ');
    return [
      `<polyline class="curve look${look}" points="${way}"/>`,
      ...places.map((place) => mark(look, place.x, place.y, pointText(place.point))),
      ...places.map((place) => {
        const { epsilon, alpha } = place.point.row;
        // The first curve has its values below it, the others above, where curves are apart.
        const [dx, dy, anchor] =
          look === 0 ? ([-6, 13, 'end'] as const) : ([6, -6, 'start'] as const);
        const value = `${epsilon ?? alpha ?? ''}`;
        return text(place.x + dx, place.y + dy, value, anchor, `value look${look}`);
      }),
    ].join('');
  });
  return `<g role="group" aria-label="${escaped(`${each.title}, ${each.subtitle}`)}">${[...grid, ...names, ...curves].join('')}</g>`;
}

function legend(policies: string[]): string {
  let left = margin;
  return policies
    .map((policy, index) => {
      const look = index % looks.length;
      const at = left;
      left += 50 + 8 * policy.length;
      return (
        `<line class="curve look${look}" x1="${at}" y1="66" x2="${at + 28}" y2="66"/>` +
        mark(look, at + 14, 66, policy) +
        text(at + 34, 70, policy)
      );
    })
    .join('');
}

function mark(look: number, x: number, y: number, title: string): string {
  const size = 4.5;
  const polygon = (corners: [number, number][]) =>
    `<polygon class="mark look${look}" points="${corners
      .map(([dx, dy]) => `${fixed(x + dx * size)},${fixed(y + dy * size)}`)
      .join(' ')}"><title>${escaped(title)}</title></polygon>`;
  switch (looks[look]!.mark) {
    case 'circle':
      return `<circle class="mark look${look}" cx="${fixed(x)}" cy="${fixed(y)}" r="${size}"><title>${escaped(title)}</title></circle>`;
    case 'square':
      return polygon([
        [-1, -1],
        [1, -1],
        [1, 1],
        [-1, 1],
      ]);
    case 'triangle':
      return polygon([
        [0, -1.2],
        [1.1, 0.9],
        [-1.1, 0.9],
      ]);
    case 'diamond':
      return polygon([
        [0, -1.3],
        [1.3, 0],
        [0, 1.3],
        [-1.3, 0],
      ]);
  }
}

function pointText({ density, kl, row }: Point): string {
  const name = `${row.policy} ${valueText(row)}`.trimEnd();
  return `${name}: density ${(100 * density).toFixed(1)} %, KL ${Number(kl.toPrecision(3))}`;
}

/** What a reader who does not see the curves gets: every point. */
function describe(panels: Panel[]): string {
  const parts = panels.map(({ title, subtitle, curves }) => {
    const points = curves.flatMap((curve) => curve.points.map(pointText));
    return `${title}, ${subtitle}: ${points.join('; ') || 'nothing sparse'}.`;
  });
  return ['KL divergence in nats per token against density of the sparse rows.', ...parts].join(
    ' ',
  );
}

function klTick(tick: number): string {
  return tick >= 0.0001 ? `${tick}` : tick.toExponential(0);
}

function style(): string {
  const scheme = (name: 'light' | 'dark') => {
    const [ground, ink, soft, grid] =
      name === 'light'
        ? ['#ffffff', '#1f2328', '#59636e', '#e3e6ea']
        : ['#16191d', '#e6e9ed', '#a4adb8', '#343a42'];
    return [
      `.ground{fill:${ground}}.heading,.title{fill:${ink}}.label,.tick{fill:${soft}}`,
      `.grid{stroke:${grid}}.axis{stroke:${soft}}.mark{stroke:${ground}}`,
      ...looks.map(
        (look, i) =>
          `.curve.look${i}{stroke:${look[name]}}.mark.look${i},.value.look${i}{fill:${look[name]}}`,
      ),
    ].join('');
  };
  return [
    'text{font-family:system-ui,sans-serif;font-size:12px}',
    '.heading{font-size:17px;font-weight:600}.title{font-size:14px;font-weight:600}.tick,.value{font-size:11px}',
    '.grid,.axis{stroke-width:1}.curve{fill:none;stroke-width:2}.mark{stroke-width:1}',
    ...looks.map(({ dash }, i) => (dash ? `.curve.look${i}{stroke-dasharray:${dash}}` : '')),
    scheme('light'),
    `@media (prefers-color-scheme:dark){${scheme('dark')}}`,
  ].join('');
}

function line(x1: number, y1: number, x2: number, y2: number, kind: string): string {
  return `<line class="${kind}" x1="${fixed(x1)}" y1="${fixed(y1)}" x2="${fixed(x2)}" y2="${fixed(y2)}"/>`;
}

function text(
  x: number,
  y: number,
  content: string,
  anchor: 'start' | 'middle' | 'end' = 'start',
  kind = 'label',
): string {
  return `<text class="${kind}" x="${fixed(x)}" y="${fixed(y)}" text-anchor="${anchor}">${escaped(content)}</text>`;
}

function fixed(value: number): string {
  return `${Number(value.toFixed(1))}`;
}

/** Text for XML: what may not stand there at all becomes a replacement character. */
function escaped(content: string): string {
  return content
    .replace(/[^\t\n\r\x20-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, '\ufffd')
    .replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
}
