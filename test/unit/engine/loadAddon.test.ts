import assert from 'node:assert/strict';
import { loadAddon } from '../../../extension/engine/loadAddon';

const throwing = (message: string) => () => {
  throw new Error(message);
};

describe('engine/loadAddon', () => {
  it('returns what has the face of the addon', () => {
    const face = { openModel: async () => undefined, machine: () => undefined };
    assert.equal(
      loadAddon('/a/longsight.node', () => face, '2.36'),
      face,
    );
  });

  it('names the file and the reason of the linker', () => {
    assert.throws(
      () =>
        loadAddon('/a/longsight.node', throwing('/a/longsight.node: invalid ELF header'), '2.36'),
      (error: { code: string; message: string; action: string }) =>
        error.code === 'addonFailedToLoad' &&
        /\/a\/longsight\.node cannot be loaded: .*invalid ELF header/.test(error.message) &&
        error.action.length > 0,
    );
  });

  it('tells which glibc is needed and which is there', () => {
    const message =
      "/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found (required by /a/longsight.node)\n" +
      "/lib/x86_64-linux-gnu/libm.so.6: version `GLIBC_2.35' not found (required by /a/libggml.so)";
    assert.throws(() => loadAddon('/a/longsight.node', throwing(message), '2.31'), {
      code: 'glibcTooOld',
      message: /needs glibc 2\.35 or newer; this system has 2\.31/,
    });
  });

  it('refuses another module under the same name', () => {
    assert.throws(() => loadAddon('/a/longsight.node', () => ({}), '2.36'), {
      code: 'addonFailedToLoad',
    });
  });
});
