import type { Asking } from '../chat/asking';

/** `Longsight: Stop`: ends every question that runs or waits. */
export function stopCommand(asking: Asking) {
  return (): void => asking.stop();
}
