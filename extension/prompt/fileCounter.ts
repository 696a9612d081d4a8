/** Counts files in prompt order, reading and tokenizing some ahead of the one that is asked for. */
import type { FileText, Snapshot, SnapshotFile } from '../workspace/snapshot';
import type { Verdict } from '../workspace/classify';
import { fileHeader, pathLine, pathListHeader } from './layout';
import type { CountTokens, Piece } from './pieces';

export interface CountedFile {
  file: SnapshotFile;
  text: string;
  /** Header and text. */
  tokens: number;
}

/** No vocabulary has longer tokens (runs of blanks are the longest, 128 bytes in Llama 3). */
const longestTokenBytes = 256;
/** Read ahead: enough files for the tokenizer's threads, not more than one large file's bytes. */
const batchFiles = 32;
const batchBytes = 1 << 20;
const batchPaths = 128;

export class FileCounter {
  readonly files: readonly SnapshotFile[];
  private readonly counted = new Map<SnapshotFile, CountedFile | Verdict>();

  constructor(
    private readonly snapshot: Snapshot,
    private readonly boundary: string,
    private readonly countTokens: CountTokens,
    private readonly options: {
      signal?: AbortSignal | undefined;
      onProgress?: ((done: number, total: number) => void) | undefined;
    },
  ) {
    this.files = snapshot.files;
  }

  /** False when the file's size alone says that it has more tokens. */
  mayFit(file: SnapshotFile, tokens: number): boolean {
    return file.sizeBytes <= tokens * longestTokenBytes;
  }

  /** Tokens of the file at `index`, or why there is no text; reads ahead what may fit. */
  async count(index: number, leftTokens: number): Promise<CountedFile | Verdict> {
    const file = this.files[index] as SnapshotFile;
    if (file.skipped !== null) return file.skipped;
    if (!this.counted.has(file)) await this.countBatch(this.batchFrom(index, leftTokens));
    this.options.onProgress?.(index + 1, this.files.length);
    return this.counted.get(file) as CountedFile | Verdict;
  }

  /**
   * Tokens of the lines that name `paths`, from the first on, as many as fit with their header.
   * The header costs nothing when there are none.
   */
  async countPaths(
    paths: readonly string[],
    limitTokens: number,
  ): Promise<{ headerTokens: number; tokens: number[] }> {
    if (paths.length === 0) return { headerTokens: 0, tokens: [] };
    const header = { text: pathListHeader(this.boundary), special: false };
    const [headerTokens = 0] = await this.countTokens([header]);
    const tokens: number[] = [];
    let left = limitTokens - headerTokens;
    for (let from = 0; from < paths.length; from += batchPaths) {
      const lines = paths.slice(from, from + batchPaths).map(pathLine);
      const counts = await this.countTokens(lines.map((text) => ({ text, special: false })));
      for (const count of counts) {
        if (count > left) return { headerTokens: tokens.length > 0 ? headerTokens : 0, tokens };
        tokens.push(count);
        left -= count;
      }
    }
    return { headerTokens, tokens };
  }

  private batchFrom(index: number, leftTokens: number): SnapshotFile[] {
    const batch: SnapshotFile[] = [];
    let bytes = 0;
    for (const file of this.files.slice(index, index + 4 * batchFiles)) {
      if (file.skipped !== null || this.counted.has(file)) continue;
      if (!this.mayFit(file, leftTokens)) continue;
      bytes += file.sizeBytes;
      if (batch.length > 0 && (batch.length === batchFiles || bytes > batchBytes)) break;
      batch.push(file);
    }
    return batch;
  }

  private async countBatch(files: readonly SnapshotFile[]): Promise<void> {
    this.options.signal?.throwIfAborted();
    const texts = await Promise.all(files.map((file) => this.snapshot.read(file)));
    this.options.signal?.throwIfAborted();
    const readable: { file: SnapshotFile; text: string }[] = [];
    files.forEach((file, index) => {
      const found = texts[index] as FileText;
      if ('text' in found) readable.push({ file, text: found.text });
      else this.counted.set(file, found);
    });
    const pieces = readable.flatMap(({ file, text }): Piece[] => [
      { text: fileHeader(this.boundary, file.path), special: false },
      { text, special: false },
    ]);
    const counts = await this.countTokens(pieces);
    readable.forEach(({ file, text }, index) => {
      const tokens = (counts[2 * index] ?? 0) + (counts[2 * index + 1] ?? 0);
      this.counted.set(file, { file, text, tokens });
    });
  }
}
