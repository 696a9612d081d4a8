import type { ErrorCode } from '../engine/protocol';

/** A failure that the user can do something about: `message` has the values, `action` the way out. */
export class CodedError extends Error {
  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly action: string,
  ) {
    super(message);
    this.name = 'CodedError';
  }
}

/** The code of a system error such as `EACCES`; `unknown` for anything else. */
export function systemCode(error: unknown): string {
  const code = (error as { code?: unknown } | null | undefined)?.code;
  return typeof code === 'string' ? code : 'unknown';
}
