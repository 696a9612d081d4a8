import assert from 'node:assert/strict';
import { chmodSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { takeSnapshot, type Snapshot } from '../../../extension/workspace/snapshot';
import { asNobody, folderWith, isRoot, removeFolders } from './folders';

const snapshotOf = (folder: string, unsaved: Record<string, string> = {}) =>
  takeSnapshot({ folders: [{ name: 'work', path: folder }], unsaved });

async function contents(snapshot: Snapshot): Promise<Record<string, string>> {
  const entries = snapshot.files.map(async (file): Promise<[string, string]> => {
    const found = file.skipped ?? (await snapshot.read(file));
    return [file.path, 'text' in found ? found.text : `! ${found.tier}: ${found.reason}`];
  });
  return Object.fromEntries(await Promise.all(entries));
}

describe('snapshot', () => {
  afterEach(removeFolders);

  it('reads texts and says why others are not read', async () => {
    const root = folderWith({
      'b.ts': 'b',
      'README.md': 'hello',
      '.env': 'KEY=1',
      'logo.png': 'x',
      'odd.txt': Uint8Array.from([1, 0, 2]),
    });
    truncateSync(path.join(root, 'b.ts'), 0);
    writeFileSync(path.join(root, 'huge.txt'), '');
    truncateSync(path.join(root, 'huge.txt'), 2 * 2 ** 30);
    const snapshot = await snapshotOf(root);
    assert.equal(snapshot.files[0]?.path, 'README.md');
    assert.deepEqual(await contents(snapshot), {
      'README.md': 'hello',
      '.env': '! out: secret name',
      'b.ts': '',
      'huge.txt': '! path: too large (2048.0 MiB)',
      'logo.png': '! path: binary',
      'odd.txt': '! path: binary',
    });
  });

  it('takes the text of the editor where it is not saved', async () => {
    const root = folderWith({ 'a.ts': 'disk', 'big.ts': '', '.env': 'KEY=1' });
    truncateSync(path.join(root, 'big.ts'), 2 << 20);
    const snapshot = await snapshotOf(root, {
      [path.join(root, 'a.ts')]: 'editor',
      [path.join(root, 'big.ts')]: 'small now',
      [path.join(root, '.env')]: 'KEY=2',
      [path.join(root, 'not-there.ts')]: 'x',
    });
    assert.deepEqual(await contents(snapshot), {
      '.env': '! out: secret name',
      'a.ts': 'editor',
      'big.ts': 'small now',
    });
  });

  it('does not change while a prompt is made', async () => {
    const root = folderWith({ 'a.ts': 'before', 'link.ts': 'x', 'gone.ts': 'x' });
    const snapshot = await snapshotOf(root);
    const file = snapshot.files.find(({ path }) => path === 'a.ts')!;
    await snapshot.read(file);
    writeFileSync(file.absolutePath, 'after');
    rmSync(path.join(root, 'gone.ts'));
    rmSync(path.join(root, 'link.ts'));
    symlinkSync('/etc/hostname', path.join(root, 'link.ts'));
    assert.deepEqual(await contents(snapshot), {
      'a.ts': 'before',
      'gone.ts': '! out: unreadable: ENOENT',
      'link.ts': '! out: unreadable: ELOOP',
    });
  });

  it('puts the name of the folder before paths when there are several', async () => {
    const one = folderWith({ 'a.ts': '1', 'README.md': '' });
    const two = folderWith({ 'a.ts': '2' });
    const snapshot = await takeSnapshot({
      folders: [
        { name: 'app', path: one },
        { name: 'app', path: two },
      ],
      unsaved: { [path.join(two, 'a.ts')]: 'edited' },
    });
    assert.deepEqual(snapshot.folderNames, ['app', 'app-2']);
    assert.deepEqual(await contents(snapshot), {
      'app/README.md': '',
      'app/a.ts': '1',
      'app-2/a.ts': 'edited',
    });
    assert.equal(snapshot.files[0]?.kind, 'readme');
  });

  it('needs a folder', async () => {
    await assert.rejects(takeSnapshot({ folders: [], unsaved: {} }), { code: 'folderNotFound' });
  });

  it('says which file cannot be read', async function () {
    if (!isRoot) this.skip();
    const root = folderWith({ 'a.ts': 'a', 'closed.ts': 'b' });
    chmodSync(root, 0o755);
    chmodSync(path.join(root, 'closed.ts'), 0o600);
    assert.deepEqual(await asNobody(async () => contents(await snapshotOf(root))), {
      'a.ts': 'a',
      'closed.ts': '! out: unreadable: EACCES',
    });
  });
});
