/**
 * Decides which files are packed whole, which are only named, and which are left out.
 *
 * Files are taken in prompt order while they fit. One that does not fit is only named, and later,
 * smaller ones may still be taken: a large file in the middle of the alphabet must not hide the
 * rest of the project. The choice depends on the files and the budget alone; the question enters
 * only through its reserve, which grows in steps of 512 tokens, so that the next question finds
 * the same files in the cache.
 */
import type { FileCounts, PackedFile } from '../engine/protocol';
import type { Snapshot, SnapshotFile } from '../workspace/snapshot';
import { CodedError } from '../workspace/errors';
import { assemblePrompt, type Conversation, type PackedTexts } from './assemble';
import { boundaryWord, isFreeOf } from './layout';
import { FileCounter, type CountedFile } from './fileCounter';
import { sum, type CountTokens } from './pieces';
import type { ChatFormat } from './template';

export interface PackOptions extends Conversation {
  format: ChatFormat;
  /** Tokens that prompt and answer share. */
  contextTokens: number;
  /** Kept free for the answer. */
  answerTokens: number;
  /** Upper bound of the tokens spent on files and paths; 0 = all that the context leaves. */
  budgetTokens: number;
  /** Refuse instead of leaving files out for want of room, or because they are unreadable. */
  strict: boolean;
  signal?: AbortSignal | undefined;
  /** Called with the number of files decided so far, and of all. */
  onProgress?: ((done: number, total: number) => void) | undefined;
}

export interface Packing extends PackedTexts {
  full: readonly PackedText[];
  /** Every file of the snapshot, in prompt order. */
  files: PackedFile[];
  counts: FileCounts;
  /** Tokens spent on files and paths, and how many could have been. */
  usedTokens: number;
  budgetTokens: number;
}

export interface PackedText {
  path: string;
  absolutePath: string;
  text: string;
}

const reserveStep = 512;
/** Share of the budget that paths of unread files may take. */
const pathShare = 0.05;
/** So many files may fail to fit before the rest is not tried: each costs reading and counting. */
const mostMisfits = 32;

/**
 * Throws `promptTooLong` when question and chat alone do not fit, `emptyWorkspace` when there is
 * no text, `overBudget` and `unreadableFile` with `strict`, `badChatTemplate`, and the signal's
 * reason.
 */
export async function packWorkspace(
  snapshot: Snapshot,
  options: PackOptions,
  countTokens: CountTokens,
): Promise<Packing> {
  for (let attempt = 0; ; attempt++) {
    const boundary = boundaryWord(snapshot.folderNames, attempt);
    const packing = await packWith(boundary, snapshot, options, countTokens);
    const shown = [...packing.full.flatMap(({ path, text }) => [path, text]), ...packing.paths];
    if (isFreeOf(boundary, shown)) return packing;
  }
}

async function packWith(
  boundary: string,
  snapshot: Snapshot,
  options: PackOptions,
  countTokens: CountTokens,
): Promise<Packing> {
  const budgetTokens = await budgetFor(boundary, options, countTokens);
  const counter = new FileCounter(snapshot, boundary, countTokens, options);
  let choice = await choose(counter, budgetTokens);
  if (options.strict) refuse(choice, counter.files.length, budgetTokens);
  const pathBudget = Math.floor(budgetTokens * pathShare);
  // Something is left out: now the paths need room, which the counts seen so far make cheap.
  if (choice.left.length > 0) choice = await choose(counter, budgetTokens - pathBudget);
  requireText(choice, snapshot);

  const listed = await counter.countPaths(
    choice.left.map(({ file }) => file.path),
    Math.min(pathBudget, budgetTokens - choice.usedTokens),
  );
  const entries = new Map<SnapshotFile, PackedFile>();
  for (const { file, tokens } of choice.taken) {
    entries.set(file, { path: file.path, tokens, tier: 'full', reason: file.kind });
  }
  choice.left.forEach(({ file, reason }, index) => {
    const tokens = listed.tokens[index];
    entries.set(
      file,
      tokens === undefined
        ? { path: file.path, tokens: 0, tier: 'out', reason: `${reason}; no room for its path` }
        : { path: file.path, tokens, tier: 'path', reason },
    );
  });
  for (const { file, reason } of choice.out) {
    entries.set(file, { path: file.path, tokens: 0, tier: 'out', reason });
  }
  const files = snapshot.files.flatMap((file) => entries.get(file) ?? []);
  const countOf = (tier: PackedFile['tier']) => files.filter((file) => file.tier === tier).length;
  return {
    boundary,
    full: choice.taken.map(({ file, text }) => ({
      path: file.path,
      absolutePath: file.absolutePath,
      text,
    })),
    paths: choice.left.slice(0, listed.tokens.length).map(({ file }) => file.path),
    files,
    counts: { full: countOf('full'), path: countOf('path'), out: countOf('out') },
    usedTokens: choice.usedTokens + listed.headerTokens + sum(listed.tokens),
    budgetTokens,
  };
}

/** Tokens for files and paths: what rules, chat, question and answer leave. */
async function budgetFor(
  boundary: string,
  { format, contextTokens, answerTokens, budgetTokens, chat, question, thinking }: PackOptions,
  countTokens: CountTokens,
): Promise<number> {
  const empty = { boundary, full: [], paths: [] };
  const [rules, asked] = assemblePrompt(format, empty, { chat, question, thinking });
  const rulesTokens = sum(await countTokens(rules.pieces));
  const askedTokens = sum(await countTokens(asked.pieces));
  const needed = rulesTokens + askedTokens + answerTokens;
  if (needed > contextTokens) {
    const turns = chat.length === 1 ? '1 earlier turn' : `${chat.length} earlier turns`;
    const chatNote = chat.length > 0 ? ` with ${turns}` : '';
    throw new CodedError(
      'promptTooLong',
      `The question${chatNote} needs ${askedTokens} tokens; with ${rulesTokens} for the rules and ` +
        `${answerTokens} for the answer that is ${needed}, and the context has ${contextTokens}.`,
      chat.length > 0
        ? 'Start a new chat, shorten the question, or use a larger context.'
        : 'Shorten the question, ask for a shorter answer, or use a larger context.',
    );
  }
  const reserve = Math.ceil(askedTokens / reserveStep) * reserveStep;
  const left = Math.max(0, contextTokens - answerTokens - rulesTokens - reserve);
  return budgetTokens > 0 ? Math.min(budgetTokens, left) : left;
}

interface Left {
  file: SnapshotFile;
  reason: string;
}

interface Choice {
  taken: CountedFile[];
  /** To be named, in the order of their claim: text without room first, then what is no text. */
  left: Left[];
  /** Not even named. */
  out: Left[];
  usedTokens: number;
  /** The first file that did not fit, and the tokens that it needed, when that was counted. */
  firstMisfit: { file: SnapshotFile; tokens: number | null; leftTokens: number } | null;
}

const overBudget = 'over budget';

async function choose(counter: FileCounter, limitTokens: number): Promise<Choice> {
  const taken: CountedFile[] = [];
  const noRoom: Left[] = [];
  const noText: Left[] = [];
  const out: Left[] = [];
  let usedTokens = 0;
  let misfits = 0;
  let firstMisfit: Choice['firstMisfit'] = null;
  for (let index = 0; index < counter.files.length; index++) {
    const file = counter.files[index] as SnapshotFile;
    const leftTokens = limitTokens - usedTokens;
    if (file.skipped === null && (misfits >= mostMisfits || !counter.mayFit(file, leftTokens))) {
      misfits++;
      firstMisfit ??= { file, tokens: null, leftTokens };
      noRoom.push({ file, reason: overBudget });
      continue;
    }
    const counted = await counter.count(index, leftTokens);
    if ('tier' in counted) {
      (counted.tier === 'out' ? out : noText).push({ file, reason: counted.reason });
    } else if (counted.tokens <= leftTokens) {
      taken.push(counted);
      usedTokens += counted.tokens;
    } else {
      misfits++;
      firstMisfit ??= { file, tokens: counted.tokens, leftTokens };
      noRoom.push({ file, reason: overBudget });
    }
  }
  return { taken, left: [...noRoom, ...noText], out, usedTokens, firstMisfit };
}

function refuse(choice: Choice, fileCount: number, budgetTokens: number): void {
  const unreadable = choice.out.find(({ reason }) => reason.startsWith('unreadable'));
  if (unreadable) {
    throw new CodedError(
      'unreadableFile',
      `${unreadable.file.absolutePath} cannot be read (${unreadable.reason}).`,
      'Make it readable or ignore it, or ask without strict.',
    );
  }
  if (choice.firstMisfit === null) return;
  const { file, tokens, leftTokens } = choice.firstMisfit;
  const size = tokens === null ? `${file.sizeBytes} bytes` : `${tokens} tokens`;
  throw new CodedError(
    'overBudget',
    `The workspace does not fit in ${budgetTokens} tokens: ${choice.taken.length} of ` +
      `${fileCount} files do, and ${file.path} (${size}) is the first that does not fit in ` +
      `what is left (${leftTokens} tokens).`,
    'Use a larger context or budget, ask about a smaller folder, or ask without strict.',
  );
}

function requireText(choice: Choice, snapshot: Snapshot): void {
  if (choice.taken.length > 0 || choice.firstMisfit !== null) return;
  const reasons = new Map<string, number>();
  for (const { reason } of [...choice.left, ...choice.out]) {
    reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
  }
  const seen = Array.from(reasons, ([reason, count]) => `${count} ${reason}`).join(', ');
  const folders = snapshot.folderNames.join(', ');
  throw new CodedError(
    'emptyWorkspace',
    seen === ''
      ? `There are no files in ${folders}.`
      : `There is no text to read in ${folders}: ${seen}.`,
    'Name a folder with text files that git does not ignore.',
  );
}
