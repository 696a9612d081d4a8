/** Messages between the host and the statistics view. */
import type { Stats } from '../engine/protocol';

export interface StatsOfQuestion {
  question: string;
  stats: Stats;
}

export type ToStats = { type: 'stats'; shown: StatsOfQuestion | null };

export type FromStats = { type: 'ready' } | { type: 'ask' };
