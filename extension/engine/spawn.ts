/** How the engine process is started. Pure, so that each of these decisions can be tested. */
import type { ForkOptions } from 'node:child_process';

export interface Parent {
  env: NodeJS.ProcessEnv;
  /** The parent's executable is Electron, which must be told to act as Node. */
  electron: boolean;
}

// What the parent needs for itself and what would change the child: options and debuggers of the
// parent's Node, libraries that would be loaded in place of the ones beside the addon, and the
// editor's own channels.
const dropped = /^(NODE_OPTIONS|NODE_V8_COVERAGE|LD_PRELOAD|LD_LIBRARY_PATH|LD_AUDIT|DYLD_.*)$/;
const droppedNoise = /^(VSCODE_|ELECTRON_|npm_)/i;

/**
 * Options for `child_process.fork`. `execArgv` is empty because debugger flags of the parent would
 * claim its port again; `advanced` serialization carries bytes as bytes; output is piped because it
 * belongs in the log, not on the parent's terminal.
 */
export function forkOptions(parent: Parent): ForkOptions {
  const env: NodeJS.ProcessEnv = {};
  for (const [name, value] of Object.entries(parent.env)) {
    if (value === undefined || dropped.test(name) || droppedNoise.test(name)) continue;
    env[name] = value;
  }
  if (parent.electron) env.ELECTRON_RUN_AS_NODE = '1';
  return {
    env,
    execArgv: [],
    serialization: 'advanced',
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    windowsHide: true,
  } as ForkOptions;
}
