import type { Asking } from '../chat/asking';
import type { ChatPanel } from '../chat/panel';

/** `Longsight: New Chat`: stops what runs and starts with an empty transcript. */
export function newChatCommand(asking: Asking, panel: ChatPanel) {
  return async (): Promise<void> => {
    asking.clear();
    await panel.reveal(true);
  };
}
