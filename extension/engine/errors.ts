/** Typed errors: every failure carries a code, a sentence with the values, and a way out. */
import { CodedError } from '../workspace/errors';
import type { EngineErrorInfo, ErrorCode } from './protocol';

export class EngineError extends CodedError {
  override name = 'EngineError';

  get info(): EngineErrorInfo {
    return { code: this.code, message: this.message, action: this.action };
  }
}

export function cancelled(): EngineError {
  return new EngineError('cancelled', 'The request was cancelled.', 'Ask again when you like.');
}

export function invalidParams(message: string, action = 'Correct the value.'): EngineError {
  return new EngineError('invalidParams', message, action);
}

export function isCancelled(error: unknown): boolean {
  return codeOf(error) === 'cancelled' || (error instanceof Error && error.name === 'AbortError');
}

/**
 * Any thrown value as an `EngineErrorInfo`. Errors of the addon and of earlier rooms carry `code`
 * and `action` as properties; whatever else arrives here is a defect and becomes `internal`.
 */
export function toErrorInfo(error: unknown): EngineErrorInfo {
  if (isCancelled(error)) return cancelled().info;
  const code = codeOf(error);
  const message = error instanceof Error ? error.message : String(error);
  if (code !== undefined) {
    const action = (error as { action?: unknown }).action;
    return { code, message, action: typeof action === 'string' ? action : '' };
  }
  return {
    code: 'internal',
    message: `Unexpected error: ${message}`,
    action: 'See the log for details and report this together with it.',
  };
}

const codes: Record<ErrorCode, true> = {
  noModel: true,
  modelNotFound: true,
  notGguf: true,
  truncatedGguf: true,
  unsupportedArchitecture: true,
  unsupportedTensorType: true,
  unsupportedTokenizer: true,
  badChatTemplate: true,
  invalidParams: true,
  notEnoughMemory: true,
  overBudget: true,
  promptTooLong: true,
  emptyWorkspace: true,
  folderNotFound: true,
  unreadableFile: true,
  writeFailed: true,
  notSessionFile: true,
  damagedSessionFile: true,
  otherSessionFile: true,
  deviceUnavailable: true,
  addonFailedToLoad: true,
  glibcTooOld: true,
  engineCrashed: true,
  cancelled: true,
  internal: true,
};

function codeOf(error: unknown): ErrorCode | undefined {
  if (typeof error !== 'object' || error === null) return undefined;
  const code = (error as { code?: unknown }).code;
  return typeof code === 'string' && Object.hasOwn(codes, code) ? (code as ErrorCode) : undefined;
}
