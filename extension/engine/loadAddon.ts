/** Loads the native addon and turns the linker's complaints into typed errors. */
import type { Addon } from './addon';
import { EngineError } from './errors';

/**
 * @param file absolute path of longsight.node
 * @param load what requires it
 * @param glibcVersion of this system; `undefined` when its C library is another one
 */
export function loadAddon(
  file: string,
  load: (file: string) => unknown,
  glibcVersion: string | undefined,
): Addon {
  let loaded: unknown;
  try {
    loaded = load(file);
  } catch (error) {
    throw loadError(file, error instanceof Error ? error.message : String(error), glibcVersion);
  }
  const addon = loaded as Partial<Addon>;
  if (typeof addon.openModel !== 'function' || typeof addon.machine !== 'function') {
    throw loadError(file, 'it has no openModel and machine', glibcVersion);
  }
  return addon as Addon;
}

function loadError(file: string, reason: string, glibcVersion: string | undefined): EngineError {
  const needed = neededGlibc(reason);
  if (needed !== undefined) {
    const found = glibcVersion ?? 'another C library';
    return new EngineError(
      'glibcTooOld',
      `The engine needs glibc ${needed} or newer; this system has ${found}.`,
      'Run it on a newer system, e.g. Ubuntu 22.04, Debian 12 or RHEL 9, or in a container of one.',
    );
  }
  if (process.platform === 'linux' && glibcVersion === undefined) {
    return new EngineError(
      'addonFailedToLoad',
      `The engine ${file} cannot be loaded: this system has no glibc (${oneLine(reason)}).`,
      'Run it on a system with glibc, or in a container of one; musl systems are not supported.',
    );
  }
  return new EngineError(
    'addonFailedToLoad',
    `The engine ${file} cannot be loaded: ${oneLine(reason)}.`,
    'Install Longsight again, or build it here with `npm run build`; `doctor` shows this check.',
  );
}

/** Highest version in messages like "version `GLIBC_2.38' not found". */
function neededGlibc(reason: string): string | undefined {
  const versions = [...reason.matchAll(/version [`']GLIBC_(\d+)\.(\d+)(?:\.\d+)?' not found/g)];
  const best = versions.sort((a, b) => Number(b[2]) - Number(a[2]))[0];
  return best && `${best[1]}.${best[2]}`;
}

function oneLine(text: string): string {
  return text.trim().split('\n')[0]!.replace(/\.$/, '').slice(0, 500);
}
