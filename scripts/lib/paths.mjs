// Where things are. Absolute paths, so that a script may be started from anywhere.
import { homedir } from 'node:os';
import path from 'node:path';

export const root = path.resolve(
  import.meta.dirname ?? new URL('.', import.meta.url).pathname,
  '../..',
);
export const inRoot = (...parts) => path.join(root, ...parts);

/** Entry of a package's command, started with this Node: works without a PATH and on any shell. */
export const tool = {
  cmakeJs: inRoot('node_modules/cmake-js/bin/cmake-js'),
  eslint: inRoot('node_modules/eslint/bin/eslint.js'),
  mocha: inRoot('node_modules/mocha/bin/mocha.js'),
  prettier: inRoot('node_modules/prettier/bin/prettier.cjs'),
  tsc: inRoot('node_modules/typescript/bin/tsc'),
  vsce: inRoot('node_modules/@vscode/vsce/vsce'),
};

/** The models folder that the extension and the command line look in, too. */
export const modelsFolder = path.join(
  process.env.XDG_DATA_HOME || path.join(homedir(), '.local/share'),
  'longsight/models',
);
