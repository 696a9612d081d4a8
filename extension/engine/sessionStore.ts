/**
 * Where saved sessions lie, and how much of the disk they may take. Editor and terminal share one
 * folder in the user's cache, so that either finds what the other has read, one limit holds for
 * both, and `longsight doctor` can name all there is. File system only; knows no engine.
 *
 * Sessions are kept unless the limit is set to 0. Reading a workspace again takes minutes, loading it
 * seconds; the disk holds the workspace itself anyway, the files are readable by their owner alone,
 * and it is a cache: the oldest go first, and a disk that is nearly full gets none.
 */
import { createHash } from 'node:crypto';
import { lstat, mkdir, readdir, statfs, unlink } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';

export interface StoredSession {
  file: string;
  bytes: number;
  /** Last saved or restored, in ms since 1970. */
  usedMs: number;
}

/** The terminal's limit for all sessions, and the editor's default. */
export const defaultFolderBytes = 8e9;

const ending = '.session';
const leftoverEnding = '.partial';
/** A save that takes longer than this has ended. */
const leftoverMs = 3_600_000;
/** What a save leaves free on the disk. */
const spareBytes = 2 * 2 ** 30;

/** `$XDG_CACHE_HOME` or `~/.cache`, then `longsight/sessions`. */
export function sessionsFolder(env: NodeJS.ProcessEnv = process.env): string {
  const named = env.XDG_CACHE_HOME;
  // The XDG rules: a relative path there is ignored.
  const cache = named && path.isAbsolute(named) ? named : path.join(os.homedir(), '.cache');
  return path.join(cache, 'longsight', 'sessions');
}

/** The file for this model on these folders, in whatever order they are listed. */
export function sessionFile(folder: string, model: string, workspace: readonly string[]): string {
  const key = JSON.stringify([model, [...workspace].sort()]);
  const name = createHash('sha256').update(key, 'utf8').digest('hex').slice(0, 32);
  return path.join(folder, name + ending);
}

/** Latest first; a folder that is not there holds none. */
export async function listSessions(folder: string): Promise<StoredSession[]> {
  const sessions: StoredSession[] = [];
  for (const file of await filesIn(folder, ending)) {
    const info = await lstat(file).catch(() => null);
    if (info?.isFile()) sessions.push({ file, bytes: info.size, usedMs: info.mtimeMs });
  }
  return sessions.sort((a, b) => b.usedMs - a.usedMs);
}

/**
 * Takes away a file of the store that is no session, as an ill-timed power loss leaves one. Does
 * nothing to files elsewhere, which people have named. Returns whether the place is free now.
 */
export async function discardFromStore(
  file: string,
  store: string = sessionsFolder(),
): Promise<boolean> {
  if (path.dirname(file) !== store || !file.endsWith(ending)) return false;
  return unlink(file).then(
    () => true,
    () => false,
  );
}

/** Deletes all of them, and what interrupted saves left. Returns the bytes that were freed. */
export async function deleteSessions(folder: string): Promise<number> {
  const sessions = await listSessions(folder);
  for (const { file } of sessions) await remove(file);
  for (const file of await filesIn(folder, leftoverEnding)) await remove(file);
  return sessions.reduce((sum, { bytes }) => sum + bytes, 0);
}

export interface Room {
  /** Length of the file that is to be written. */
  bytes: number;
  /** Most that all files in the folder may take; 0 = no limit, and nothing is deleted. */
  mostBytes: number;
}

/**
 * Makes the folder, removes what interrupted saves of this file left, and deletes the oldest other
 * sessions until this one fits below the limit. Returns why it cannot be written, if so.
 */
export async function makeRoom(
  file: string,
  { bytes, mostBytes }: Room,
  nowMs = Date.now(),
): Promise<string | undefined> {
  const folder = path.dirname(file);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await removeLeftovers(file, nowMs);
  if (mostBytes > 0) {
    if (bytes > mostBytes) return `it would take ${bytes} bytes of ${mostBytes} that are allowed`;
    const others = (await listSessions(folder)).filter((other) => other.file !== file);
    let taken = others.reduce((sum, other) => sum + other.bytes, 0);
    for (const oldest of others.reverse()) {
      if (taken + bytes <= mostBytes) break;
      await remove(oldest.file);
      taken -= oldest.bytes;
    }
  }
  const disk = await statfs(folder);
  const free = disk.bavail * disk.bsize;
  if (free < bytes + spareBytes) return `the disk of ${folder} has only ${free} bytes left`;
  return undefined;
}

async function removeLeftovers(file: string, nowMs: number): Promise<void> {
  for (const leftover of await filesIn(path.dirname(file), leftoverEnding)) {
    if (!leftover.startsWith(`${file}.`)) continue;
    const info = await lstat(leftover).catch(() => null);
    if (info && nowMs - info.mtimeMs > leftoverMs) await remove(leftover);
  }
}

async function filesIn(folder: string, end: string): Promise<string[]> {
  const names = await readdir(folder).catch(() => []);
  return names.filter((name) => name.endsWith(end)).map((name) => path.join(folder, name));
}

async function remove(file: string): Promise<void> {
  // Another window may have been faster.
  await unlink(file).catch(() => undefined);
}
