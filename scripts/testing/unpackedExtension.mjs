// The package as an installation leaves it on the disk.
import { output, Problem } from '../lib/terminal.mjs';
import path from 'node:path';

/** @returns {string} absolute path of the extension's folder below `folder` */
export function unpackExtension(vsix, folder) {
  const target = path.join(folder, 'installed');
  if (output('python3', ['-m', 'zipfile', '-e', vsix, target]) === undefined) {
    throw new Problem(`${vsix} cannot be unpacked into ${target}.`);
  }
  return path.join(target, 'extension');
}
