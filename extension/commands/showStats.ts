import type { StatsView } from '../status/statsView';

/** `Longsight: Show Stats`. */
export function showStatsCommand(view: StatsView) {
  return (): void => view.open();
}
