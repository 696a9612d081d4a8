/** Messages between the host and the chat view. Pure types and one check of what comes in. */
import type { ErrorCode } from '../engine/protocol';
import type { Entry } from './conversation';

/** What the view shows around the transcript. */
export interface Surroundings {
  /** File name of the model without `.gguf`; empty = none chosen. */
  modelName: string;
  folders: string[];
}

export type ToChat =
  | { type: 'transcript'; entries: readonly Entry[]; surroundings: Surroundings }
  | { type: 'entry'; entry: Entry }
  | { type: 'append'; id: number; text: string }
  | { type: 'thought'; id: number; text: string; elapsedMs: number }
  | { type: 'surroundings'; surroundings: Surroundings }
  | { type: 'focusInput' };

export type Choice = 'start' | 'fewerFiles' | 'cancel';

/** A way out of an error that is one click away. */
export type Remedy = 'selectModel' | 'openSettings' | 'openFolder' | 'showLog' | 'askAgain';

export type FromChat =
  | { type: 'ready' }
  | { type: 'ask'; question: string }
  | { type: 'stop'; id: number }
  | { type: 'choose'; id: number; choice: Choice }
  | { type: 'openCitation'; id: number; index: number }
  | { type: 'copy'; id: number }
  | { type: 'remedy'; id: number; remedy: Remedy }
  | { type: 'showStats'; id: number }
  | { type: 'selectModel' }
  | { type: 'openFolder' };

export const remedyTitles: Record<Remedy, string> = {
  selectModel: 'Select Model…',
  openSettings: 'Open Settings',
  openFolder: 'Open Folder…',
  showLog: 'Show Log',
  askAgain: 'Ask Again',
};

/** The remedies for an error, the likeliest first. */
export function remediesOf(code: ErrorCode): Remedy[] {
  switch (code) {
    case 'noModel':
    case 'modelNotFound':
    case 'notGguf':
    case 'truncatedGguf':
    case 'unsupportedArchitecture':
    case 'unsupportedTensorType':
    case 'unsupportedTokenizer':
    case 'badChatTemplate':
      return ['selectModel', 'showLog'];
    case 'notEnoughMemory':
      return ['selectModel', 'openSettings', 'showLog'];
    case 'invalidParams':
    case 'deviceUnavailable':
    case 'overBudget':
    case 'promptTooLong':
      return ['openSettings', 'askAgain', 'showLog'];
    case 'emptyWorkspace':
    case 'folderNotFound':
      return ['openFolder', 'askAgain'];
    case 'engineCrashed':
    case 'unreadableFile':
    case 'writeFailed':
    case 'notSessionFile':
    case 'damagedSessionFile':
    case 'otherSessionFile':
    case 'internal':
      return ['askAgain', 'showLog'];
    case 'addonFailedToLoad':
    case 'glibcTooOld':
      return ['showLog'];
    case 'cancelled':
      return [];
  }
}

const choices: readonly unknown[] = ['start', 'fewerFiles', 'cancel'] satisfies Choice[];

/** A message of the view, or undefined when it is none: the host trusts no shape it did not check. */
export function parseFromChat(value: unknown): FromChat | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const message = value as Record<string, unknown>;
  const hasId = Number.isSafeInteger(message.id);
  switch (message.type) {
    case 'ready':
    case 'selectModel':
    case 'openFolder':
      return { type: message.type };
    case 'ask':
      return typeof message.question === 'string'
        ? { type: 'ask', question: message.question }
        : undefined;
    case 'stop':
    case 'copy':
    case 'showStats':
      return hasId ? { type: message.type, id: message.id as number } : undefined;
    case 'choose':
      return hasId && choices.includes(message.choice)
        ? { type: 'choose', id: message.id as number, choice: message.choice as Choice }
        : undefined;
    case 'openCitation':
      return hasId && Number.isSafeInteger(message.index)
        ? { type: 'openCitation', id: message.id as number, index: message.index as number }
        : undefined;
    case 'remedy':
      return hasId &&
        typeof message.remedy === 'string' &&
        Object.hasOwn(remedyTitles, message.remedy)
        ? { type: 'remedy', id: message.id as number, remedy: message.remedy as Remedy }
        : undefined;
    default:
      return undefined;
  }
}
