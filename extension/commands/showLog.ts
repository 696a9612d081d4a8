import type { LogOutputChannel } from 'vscode';

/** `Longsight: Show Log`. */
export function showLogCommand(log: LogOutputChannel) {
  return (): void => log.show();
}
