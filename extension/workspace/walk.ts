/** Lists the files of a workspace folder that are neither ignored by git nor tools' copies. */
import { lstat, readdir, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import { isSecretFolder } from './classify';
import { CodedError, systemCode } from './errors';
import { IgnoreRules } from './ignore';
import { mapLimited } from './pool';

/** A regular file, or something of which only the name is known and why. */
export interface WalkedFile {
  /** Relative to the folder, `/` separators; bytes that are no UTF-8 are written as \xNN. */
  path: string;
  /** Where it is opened by people and editors: below the folder as it was named. */
  absolutePath: string;
  /** Where it is read: below the folder's real path. */
  diskPath: string;
  sizeBytes: number;
  /** Null for a regular file; else why it is not read: `path` may be shown, `out` not even that. */
  skipped: { tier: 'path' | 'out'; reason: string } | null;
}

export interface WalkOptions {
  signal?: AbortSignal | undefined;
  /** Called now and then with the number of files found so far. */
  onProgress?: ((files: number) => void) | undefined;
}

/** Folders read, and files looked at, at the same time: enough to hide a network disk's delay. */
const concurrency = 16;
const progressEvery = 256;

/**
 * All files below `folder`, in no particular order.
 * Throws `folderNotFound`, `unreadableFile` (the folder itself) and the signal's reason.
 */
export async function walkFolder(folder: string, options: WalkOptions = {}): Promise<WalkedFile[]> {
  const root = await openRoot(folder);
  const walk = new Walk(folder, root, options);
  await walk.run();
  return walk.files;
}

async function openRoot(folder: string): Promise<string> {
  const action = 'Name a folder that exists and that you may read.';
  try {
    const root = await realpath(folder);
    if ((await stat(root)).isDirectory()) return root;
  } catch (error) {
    const code = systemCode(error);
    if (code === 'EACCES' || code === 'EPERM') {
      throw new CodedError(
        'unreadableFile',
        `The folder ${folder} cannot be read: ${code}.`,
        action,
      );
    }
    throw new CodedError('folderNotFound', `There is no folder ${folder} (${code}).`, action);
  }
  throw new CodedError('folderNotFound', `${folder} is not a folder.`, action);
}

interface Folder {
  /** Relative to the root, `/` separators, '' for the root itself. */
  path: string;
  rules: IgnoreRules;
}

class Walk {
  readonly files: WalkedFile[] = [];
  private reported = 0;

  constructor(
    private readonly named: string,
    private readonly root: string,
    private readonly options: WalkOptions,
  ) {}

  /** Folder level by folder level, so that no recursion follows the depth of the disk. */
  async run(): Promise<void> {
    let level: Folder[] = [{ path: '', rules: await IgnoreRules.forRoot(this.root) }];
    while (level.length > 0) {
      const below = await mapLimited(level, concurrency, (folder) => this.read(folder));
      level = below.flat();
    }
  }

  /** Adds the folder's files; returns the folders in it. */
  private async read(folder: Folder): Promise<Folder[]> {
    this.options.signal?.throwIfAborted();
    const diskFolder = this.disk(folder.path);
    let entries;
    try {
      entries = await readdir(diskFolder, { withFileTypes: true, encoding: 'buffer' });
    } catch (error) {
      const code = systemCode(error);
      if (folder.path === '') {
        throw new CodedError(
          'unreadableFile',
          `The folder ${this.named} cannot be read: ${code}.`,
          'Name a folder that you may read.',
        );
      }
      this.add(`${folder.path}/`, 0, { tier: 'out', reason: `unreadable: ${code}` });
      return [];
    }
    const rules = folder.path === '' ? folder.rules : await folder.rules.entering(diskFolder);
    const folders: Folder[] = [];
    for (const entry of entries) {
      // Types say Dirent<string>; with this encoding the name is a Buffer.
      const bytes = entry.name as unknown as Buffer;
      const name = bytes.toString('utf8');
      const inFolder = folder.path === '' ? '' : `${folder.path}/`;
      if (!Buffer.from(name, 'utf8').equals(bytes)) {
        this.add(inFolder + escapeBytes(bytes), 0, { tier: 'out', reason: 'name is not UTF-8' });
        continue;
      }
      const file = inFolder + name;
      if (rules.ignores(this.disk(file), entry.isDirectory())) continue;
      if (entry.isDirectory()) {
        if (isSecretFolder(name)) {
          this.add(`${file}/`, 0, { tier: 'out', reason: 'secret name' });
        } else {
          folders.push({ path: file, rules });
        }
      } else {
        await this.look(file);
      }
    }
    return folders;
  }

  /** Everything that is not a folder. */
  private async look(file: string): Promise<void> {
    try {
      const found = await lstat(this.disk(file));
      if (found.isSymbolicLink()) return await this.lookAtLink(file);
      if (found.isFile()) return this.add(file, found.size, null);
      this.add(file, 0, { tier: 'out', reason: 'not a regular file' });
    } catch (error) {
      this.add(file, 0, { tier: 'out', reason: `unreadable: ${systemCode(error)}` });
    }
  }

  /**
   * A link is never followed. What it points to inside the folder is read under its own name, by
   * the rules for that name (it may be ignored, or a secret), and so only once.
   */
  private async lookAtLink(file: string): Promise<void> {
    try {
      const target = path.relative(this.root, await realpath(this.disk(file)));
      const outside =
        target === '..' || target.startsWith(`..${path.sep}`) || path.isAbsolute(target);
      if (outside) return this.add(file, 0, { tier: 'out', reason: 'link out of the folder' });
      const shown = target === '' ? 'the folder itself' : target.split(path.sep).join('/');
      this.add(file, 0, { tier: 'path', reason: `link to ${shown}` });
    } catch (error) {
      const code = systemCode(error);
      const reason = code === 'ENOENT' ? 'broken link' : code === 'ELOOP' ? 'link loop' : undefined;
      this.add(file, 0, { tier: 'out', reason: reason ?? `unreadable: ${code}` });
    }
  }

  private add(file: string, sizeBytes: number, skipped: WalkedFile['skipped']): void {
    const absolutePath = path.join(this.named, file);
    this.files.push({ path: file, absolutePath, diskPath: this.disk(file), sizeBytes, skipped });
    if (this.files.length - this.reported >= progressEvery) {
      this.reported = this.files.length;
      this.options.onProgress?.(this.files.length);
    }
  }

  private disk(file: string): string {
    return path.join(this.root, file);
  }
}

function escapeBytes(bytes: Buffer): string {
  return Array.from(bytes, (byte) =>
    byte >= 0x20 && byte < 0x7f
      ? String.fromCharCode(byte)
      : `\\x${byte.toString(16).padStart(2, '0')}`,
  ).join('');
}
