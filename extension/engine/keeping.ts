/** Rows of a workspace on disk: taken over by a new session, saved when they have changed. */
import { stat, utimes } from 'node:fs/promises';
import type { Prompt } from './addon';
import { systemCode } from '../workspace/errors';
import { EngineError, isCancelled, toErrorInfo } from './errors';
import { beginPhase, progressOf, stoppable, type JobContext } from './job';
import type { Loaded, ModelKeeper } from './loading';
import {
  nothingNew,
  type SampleAttentionParams,
  type SaveRequest,
  type SaveResult,
} from './protocol';
import { discardFromStore, makeRoom } from './sessionStore';

/** A file that spares less than this share of the workspace is written anew. */
const worthShare = 0.95;

/** What one session knows about its rows and the disk. */
export class Kept {
  /** The session has computed nothing yet. */
  private fresh = true;
  private restoredFrom = '';
  /** The workspace whose rows the session was last asked to hold. */
  private current: Rows | null = null;
  private onDisk: (Rows & { file: string }) | null = null;

  /** True once, for a session that is new. */
  takeFresh(): boolean {
    const { fresh } = this;
    this.fresh = false;
    return fresh;
  }

  restored(file: string): void {
    this.restoredFrom = file;
  }

  saved(file: string, { tokens, params }: Rows): void {
    this.onDisk = { file, tokens, params };
  }

  /** A prompt is about to be computed; `reusedTokens` of its rows are in the cache. */
  begin({ tokens, denseFrom, params }: Prompt, reusedTokens: number): void {
    this.current = { tokens: tokens.slice(0, denseFrom), params };
    if (this.restoredFrom === '') return;
    // The rows of the file that this prompt can use are all that counts of it.
    const usable = this.current.tokens.subarray(0, Math.min(reusedTokens, denseFrom));
    this.onDisk = { file: this.restoredFrom, tokens: usable, params };
    this.restoredFrom = '';
  }

  /** Rows that should be saved to the file; null when there are none or the file is good enough. */
  unsaved(file: string): Rows | null {
    const { current, onDisk } = this;
    if (current === null || current.tokens.length === 0) return null;
    if (onDisk?.file !== file || !sameParams(onDisk.params, current.params)) return current;
    const spared = commonLength(onDisk.tokens, current.tokens);
    return spared < worthShare * current.tokens.length ? current : null;
  }
}

interface Rows {
  tokens: Int32Array;
  params: SampleAttentionParams;
}

/**
 * Fills a new session from the file, as part of loading. Whatever the file is, the question goes on:
 * only a cancel and somebody's file of another kind, which a later save would not replace, are
 * errors.
 */
export async function restoreRows(
  { session, kept }: Loaded,
  file: string,
  context: JobContext,
): Promise<void> {
  if (!kept.takeFresh() || file === '') return;
  const info = await stat(file).catch(() => null);
  // An empty file was reserved for a session by whoever named it.
  if (info === null || info.size === 0) return;
  const startMs = context.now();
  try {
    const { tokens, bytes } = await stoppable(context, session, () =>
      session.restore(file, progressOf(context, 'load', 'bytes').bytes),
    );
    kept.restored(file);
    const ms = Math.round(context.now() - startMs);
    log(context, 'info', `Restored ${tokens} tokens, ${bytes} bytes, in ${ms} ms from ${file}.`);
    // The oldest are deleted first: this one was of use just now.
    await utimes(file, new Date(), new Date()).catch(() => undefined);
  } catch (error) {
    const problem = toErrorInfo(error);
    if (isCancelled(error)) throw error;
    if (problem.code === 'notSessionFile' && !(await discardFromStore(file))) throw error;
    log(context, 'warn', `${problem.message} The workspace is read anew.`);
  }
}

/** `save`: the rows of the workspace that was last asked about. Never a part of a question. */
export async function runSave(
  request: SaveRequest,
  keeper: ModelKeeper,
  context: JobContext,
): Promise<SaveResult> {
  const loaded = keeper.openedSession();
  const rows = loaded?.kept.unsaved(request.file);
  if (!loaded || !rows) return { saved: false, reason: nothingNew, tokens: 0, bytes: 0 };
  const { session, kept } = loaded;
  const count = rows.tokens.length;
  const bytes = session.savedBytes(count);
  const room = { bytes, mostBytes: request.mostFolderBytes };
  const reason = await makeRoom(request.file, room).catch((error: unknown) => {
    throw new EngineError(
      'writeFailed',
      `${request.file} cannot be written (${systemCode(error)}).`,
      'Choose a folder in which this user may write.',
    );
  });
  if (reason !== undefined) {
    log(context, 'warn', `The session is not saved: ${reason}.`);
    return { saved: false, reason, tokens: 0, bytes: 0 };
  }
  beginPhase(context, 'save');
  const startMs = context.now();
  const saved = await stoppable(context, session, () =>
    session.save(request.file, count, progressOf(context, 'save', 'bytes').bytes),
  );
  kept.saved(request.file, { ...rows, tokens: rows.tokens.subarray(0, saved.tokens) });
  const ms = Math.round(context.now() - startMs);
  const what = `${saved.tokens} tokens, ${saved.bytes} bytes, in ${ms} ms`;
  log(context, 'info', `Saved ${what} to ${request.file}.`);
  return { saved: true, reason: '', ...saved };
}

function log(context: JobContext, level: 'info' | 'warn', text: string): void {
  context.send({ type: 'log', level, text });
}

function sameParams(a: SampleAttentionParams, b: SampleAttentionParams): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

function commonLength(a: Int32Array, b: Int32Array): number {
  const most = Math.min(a.length, b.length);
  let length = 0;
  while (length < most && a[length] === b[length]) length++;
  return length;
}
