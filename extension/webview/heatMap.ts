/** Density by layer and head. Each value can be reached by pointer and by keyboard. */
import type { LayerDensity } from '../engine/protocol';
import { formatPercent } from '../status/format';
import { el, setText } from './dom';

/** Layers from left to right, heads from top to bottom, the mean of the layer in the first row. */
export function heatMap(layers: readonly LayerDensity[]): HTMLElement {
  const heads = Math.max(0, ...layers.map((layer) => layer.heads.length));
  const values = layers.flatMap((layer) => layer.heads).filter((value) => value !== null);
  // The scale ends at the largest value: densities are small, differences between heads matter.
  const top = Math.max(...values, 1e-9);
  const cells: HTMLTableCellElement[][] = [];
  const readout = el('p', { class: 'readout', 'aria-live': 'polite' });
  const resting = 'Point at a cell, or move with the arrow keys, to read its value.';
  setText(readout, resting);

  const row = (
    name: string,
    read: (layer: LayerDensity) => number | null | undefined,
    say: string,
  ) => {
    const line = layers.map((layer, index) => {
      const value = read(layer) ?? null;
      const text = `Layer ${index + 1}, ${say}: ${value === null ? 'nothing was sparse' : formatPercent(value)}`;
      const cell = el('td', { role: 'gridcell', tabindex: '-1', title: text, 'aria-label': text });
      if (value === null) cell.classList.add('none');
      else cell.style.setProperty('--heat', `${Math.round((value / top) * 100)}%`);
      const show = () => setText(readout, text);
      cell.addEventListener('focus', show);
      cell.addEventListener('pointerenter', show);
      return cell;
    });
    cells.push(line);
    return el('tr', { role: 'row' }, el('th', { scope: 'row', role: 'rowheader' }, name), ...line);
  };

  const mean = row('mean', (layer) => layer.density, 'all heads');
  mean.classList.add('mean');
  const body = Array.from({ length: heads }, (_, head) =>
    row(String(head + 1), (layer) => layer.heads[head], `head ${head + 1}`),
  );
  const header = el(
    'tr',
    { role: 'row' },
    el('th', { scope: 'col', role: 'columnheader' }, 'head'),
    ...layers.map((_, index) =>
      // Every fifth number is enough to find a layer.
      el(
        'th',
        { scope: 'col', role: 'columnheader', 'aria-label': `Layer ${index + 1}` },
        index === 0 || (index + 1) % 5 === 0 ? String(index + 1) : '',
      ),
    ),
  );
  const grid = el(
    'table',
    { class: 'heat', role: 'grid', 'aria-label': 'Density by layer and head' },
    el('thead', {}, header),
    el('tbody', {}, mean, ...body),
  );
  grid.addEventListener('keydown', (event) => moveFocus(event, cells));
  grid.addEventListener('pointerleave', () => setText(readout, resting));
  const first = cells[0]?.[0];
  if (first !== undefined) first.tabIndex = 0;

  return el(
    'div',
    { class: 'heat-frame' },
    el('div', { class: 'heat-scroll' }, grid),
    el('p', { class: 'axis muted' }, 'layer →'),
    el(
      'div',
      { class: 'legend' },
      el('span', {}, '0%'),
      el('span', { class: 'legend-bar', 'aria-hidden': 'true' }),
      el('span', {}, formatPercent(top)),
      el('span', { class: 'key none', 'aria-hidden': 'true' }),
      el('span', {}, 'nothing was sparse'),
    ),
    readout,
  );
}

/** Arrow keys, Home and End move; one cell at a time is in the tab order. */
function moveFocus(event: KeyboardEvent, cells: HTMLTableCellElement[][]): void {
  const row = cells.findIndex((line) => line.includes(event.target as HTMLTableCellElement));
  const line = cells[row];
  if (line === undefined) return;
  const column = line.indexOf(event.target as HTMLTableCellElement);
  const moves: Record<string, [number, number]> = {
    ArrowLeft: [row, column - 1],
    ArrowRight: [row, column + 1],
    ArrowUp: [row - 1, column],
    ArrowDown: [row + 1, column],
    Home: [row, 0],
    End: [row, line.length - 1],
  };
  const to = moves[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const next = cells[to[0]]?.[to[1]];
  if (next === undefined) return;
  line[column]?.setAttribute('tabindex', '-1');
  next.tabIndex = 0;
  next.focus();
}
