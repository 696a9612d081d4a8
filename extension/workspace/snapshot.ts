/** A frozen list of the workspace's files in prompt order; contents are read when asked for. */
import { constants, open } from 'node:fs/promises';
import path from 'node:path';
import type { WorkspaceFolder } from '../engine/protocol';
import { classifyName, classifySize, classifyText, decodeText, type Verdict } from './classify';
import { CodedError, systemCode } from './errors';
import { inPromptOrder, kindOf, type Kind } from './order';
import { walkFolder, type WalkOptions } from './walk';

export interface SnapshotFile {
  /** Relative to its folder, `/` separators; with several folders prefixed by the folder's name. */
  path: string;
  absolutePath: string;
  /** Bytes on disk or in the editor, 0 for what is not a regular file. */
  sizeBytes: number;
  kind: Kind;
  /** Why it cannot be read; null when `read` is worth trying. */
  skipped: Verdict | null;
}

/** Text that is packed, or why there is none. */
export type FileText = { text: string } | Verdict;

export interface Snapshot {
  /** Names of the folders, in the order given: what the prompt calls the workspace. */
  folderNames: string[];
  files: readonly SnapshotFile[];
  /**
   * Text of a file that is not `skipped`. The first reading of a file is kept: it does not change
   * while one prompt is made. Never throws for what is wrong with the file.
   */
  read(file: SnapshotFile): Promise<FileText>;
}

export interface WorkspaceSource {
  folders: readonly WorkspaceFolder[];
  /** Text of documents that are open and unsaved, by absolute path: read instead of the disk. */
  unsaved: Readonly<Record<string, string>>;
}

/**
 * Lists the folders. Contents are not read here, so that a workspace that is a hundred times
 * larger than the context is not read whole.
 * Throws `folderNotFound`, `unreadableFile` (a folder itself) and the signal's reason.
 */
export async function takeSnapshot(
  source: WorkspaceSource,
  options: WalkOptions = {},
): Promise<Snapshot> {
  if (source.folders.length === 0) {
    throw new CodedError('folderNotFound', 'No folder is given.', 'Name the folder to read.');
  }
  const unsaved = new Map(
    Object.entries(source.unsaved).map(([file, text]) => [path.normalize(file), text]),
  );
  const editedText = (file: string) => unsaved.get(path.normalize(file));
  const several = source.folders.length > 1;
  const names = uniqueNames(source.folders);
  const diskPaths = new Map<SnapshotFile, string>();
  const files: SnapshotFile[] = [];
  for (const [index, folder] of source.folders.entries()) {
    const before = files.length;
    const onProgress = (found: number) => options.onProgress?.(before + found);
    for (const walked of await walkFolder(folder.path, { ...options, onProgress })) {
      const edited = editedText(walked.absolutePath);
      const file: SnapshotFile = {
        path: several ? `${names[index]}/${walked.path}` : walked.path,
        absolutePath: walked.absolutePath,
        sizeBytes: edited === undefined ? walked.sizeBytes : Buffer.byteLength(edited, 'utf8'),
        kind: kindOf(walked.path),
        skipped:
          classifyName(walked.path) ??
          (edited === undefined ? (walked.skipped ?? classifySize(walked.sizeBytes)) : null),
      };
      files.push(file);
      diskPaths.set(file, walked.diskPath);
    }
  }
  options.onProgress?.(files.length);

  const texts = new Map<SnapshotFile, Promise<FileText>>();
  const read = (file: SnapshotFile): Promise<FileText> => {
    let text = texts.get(file);
    if (text === undefined) {
      const edited = editedText(file.absolutePath);
      text =
        edited === undefined
          ? readDisk(diskPaths.get(file) ?? file.absolutePath)
          : Promise.resolve(textOf(Buffer.from(edited, 'utf8')));
      texts.set(file, text);
    }
    return text;
  };
  return { folderNames: names, files: inPromptOrder(files), read };
}

/** Repeated names are numbered. A slash in a name would look like a folder. */
function uniqueNames(folders: readonly WorkspaceFolder[]): string[] {
  const taken = new Set<string>();
  return folders.map((folder) => {
    const base = (folder.name || path.basename(folder.path) || 'workspace').replace(/[/\\]/g, '-');
    let name = base;
    for (let n = 2; taken.has(name); n++) name = `${base}-${n}`;
    taken.add(name);
    return name;
  });
}

async function readDisk(file: string): Promise<FileText> {
  try {
    // The file may have been replaced since the walk: no link is followed, nothing can block.
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
    const handle = await open(file, flags);
    try {
      const found = await handle.stat();
      if (!found.isFile()) return { tier: 'out', reason: 'not a regular file' };
      return classifySize(found.size) ?? textOf(await handle.readFile());
    } finally {
      await handle.close();
    }
  } catch (error) {
    return { tier: 'out', reason: `unreadable: ${systemCode(error)}` };
  }
}

function textOf(bytes: Buffer): FileText {
  const tooLarge = classifySize(bytes.length);
  if (tooLarge) return tooLarge;
  const decoded = decodeText(bytes);
  if (!('text' in decoded)) return decoded;
  return classifyText(decoded.text) ?? { text: decoded.text };
}
