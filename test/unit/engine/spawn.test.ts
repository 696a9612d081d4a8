import assert from 'node:assert/strict';
import { forkOptions } from '../../../extension/engine/spawn';

describe('engine/spawn', () => {
  it('hands no debugger flag, preloaded library or editor channel to the child', () => {
    const { env } = forkOptions({
      env: {
        PATH: '/bin',
        HOME: '/home/x',
        LONGSIGHT_CPU: 'portable',
        NODE_OPTIONS: '--inspect',
        LD_PRELOAD: '/x.so',
        LD_LIBRARY_PATH: '/snap/lib',
        DYLD_INSERT_LIBRARIES: '/x.dylib',
        VSCODE_IPC_HOOK: '/run/x.sock',
        ELECTRON_NO_ATTACH_CONSOLE: '1',
        EMPTY: undefined,
      },
      electron: false,
    });
    assert.deepEqual(env, { PATH: '/bin', HOME: '/home/x', LONGSIGHT_CPU: 'portable' });
  });

  it('tells Electron to act as Node, and only Electron', () => {
    assert.equal(forkOptions({ env: {}, electron: true }).env!.ELECTRON_RUN_AS_NODE, '1');
    const plain = forkOptions({ env: { ELECTRON_RUN_AS_NODE: '1' }, electron: false });
    assert.equal(plain.env!.ELECTRON_RUN_AS_NODE, undefined);
  });

  it('pipes the output, sends bytes as bytes, and inherits no flag', () => {
    const options = forkOptions({ env: {}, electron: false });
    assert.deepEqual(options.execArgv, []);
    assert.equal(options.serialization, 'advanced');
    assert.deepEqual(options.stdio, ['ignore', 'pipe', 'pipe', 'ipc']);
  });

  it('leaves the environment of the parent as it is', () => {
    const env = { NODE_OPTIONS: '--inspect' };
    forkOptions({ env, electron: true });
    assert.deepEqual(env, { NODE_OPTIONS: '--inspect' });
  });
});
