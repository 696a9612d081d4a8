import type { PackOptions } from '../../../extension/prompt/pack';
import type { CountTokens } from '../../../extension/prompt/pieces';
import { inPromptOrder, kindOf } from '../../../extension/workspace/order';
import type { Snapshot, SnapshotFile } from '../../../extension/workspace/snapshot';
import type { Verdict } from '../../../extension/workspace/classify';
import { smolLM2 } from './templates';

/** Texts by path; a verdict for what cannot be read. `reads` lists the paths that were read. */
export function snapshotOf(
  contents: Record<string, string | Verdict>,
  folderNames = ['work'],
): Snapshot & { reads: string[] } {
  const reads: string[] = [];
  const files = Object.entries(contents).map(
    ([path, content]): SnapshotFile => ({
      path,
      absolutePath: `/work/${path}`,
      sizeBytes: typeof content === 'string' ? Buffer.byteLength(content) : 0,
      kind: kindOf(path),
      skipped: typeof content === 'string' ? null : content,
    }),
  );
  return {
    folderNames,
    files: inPromptOrder(files),
    reads,
    read: async ({ path }) => {
      reads.push(path);
      return { text: contents[path] as string };
    },
  };
}

/** One token for each word, blank run and other character: near enough to a tokenizer, and exact. */
export const countWords: CountTokens = async (pieces) =>
  pieces.map(({ text }) => text.match(/\w+|\s+|[^\w\s]/g)?.length ?? 0);

export const words = (count: number) =>
  Array.from({ length: count / 2 }, () => 'w').join(' ') + ' ';

export const packOptions = (rest: Partial<PackOptions> = {}): PackOptions => ({
  format: { chatTemplate: smolLM2, bosText: '', eosText: '', addBos: false },
  contextTokens: 8_192,
  answerTokens: 512,
  budgetTokens: 0,
  strict: false,
  chat: [],
  question: 'Why?',
  thinking: false,
  ...rest,
});
