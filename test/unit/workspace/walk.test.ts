import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { walkFolder } from '../../../extension/workspace/walk';
import { asNobody, folderWith, git, isRoot, removeFolders } from './folders';

async function walked(folder: string): Promise<Record<string, string>> {
  const files = await walkFolder(folder);
  return Object.fromEntries(
    files
      .map(({ path: file, skipped }): [string, string] => [
        file,
        skipped === null ? 'read' : `${skipped.tier}: ${skipped.reason}`,
      ])
      .sort(([a], [b]) => (a < b ? -1 : 1)),
  );
}

describe('walk', () => {
  afterEach(removeFolders);

  it('lists files in all folders with size, path and where they are', async () => {
    const root = folderWith({ 'a.ts': 'abc', 'src/deep/er/b.ts': '' });
    const files = (await walkFolder(root)).sort((a, b) => (a.path < b.path ? -1 : 1));
    assert.deepEqual(
      files.map(({ path: file, sizeBytes }) => [file, sizeBytes]),
      [
        ['a.ts', 3],
        ['src/deep/er/b.ts', 0],
      ],
    );
    assert.equal(files[1]?.absolutePath, path.join(root, 'src/deep/er/b.ts'));
  });

  it('passes over what version control and package managers keep', async () => {
    const root = folderWith({
      'a.ts': '',
      '.git/config': '',
      'sub/.hg/x': '',
      'sub/node_modules/m/index.js': '',
      'sub/__pycache__/m.pyc': '',
    });
    assert.deepEqual(await walked(root), { 'a.ts': 'read' });
  });

  it('agrees with git about what is ignored', async () => {
    const root = folderWith({
      '.gitignore':
        '*.log\n/build\n!keep.log\ntemp/\nwe*rd*/\n\\#odd\nsp ace.txt  \nnot\\ stripped\\ \n',
      'a.log': '',
      'keep.log': '',
      'build/x.ts': '',
      'src/build/y.ts': '',
      'src/temp/z.ts': '',
      'src/.gitignore': '!a.log\n*.gen.ts\n/only-here\n**/deep/*.txt\n',
      'src/a.log': '',
      'src/b.log': '',
      'src/c.gen.ts': '',
      'src/only-here': '',
      'src/lib/only-here': '',
      'src/lib/deep/t.txt': '',
      'src/lib/deep/more/t.txt': '',
      'src/lib/.gitignore': '!c.gen.ts\n',
      'src/lib/c.gen.ts': '',
      '#odd': '',
      'sp ace.txt': '',
      'not stripped ': '',
      'CASE.LOG': '',
      'again/.gitignore': '!temp/\n!we*rd*/\n',
      'again/we[ir]rd !\\?/x.ts': '',
      'again/we[ir]rd !\\?/x.log': '',
      'weird/x.ts': '',
      'again/temp/in.ts': '',
      'again/temp/in.log': '',
    });
    git(root, 'init', '-q');
    const kept = git(root, 'ls-files', '-z', '--others', '--exclude-standard').split('\0');
    assert.deepEqual(Object.keys(await walked(root)), kept.filter(Boolean).sort());
  });

  it('knows the rules of the repository around the folder, and its exclude file', async () => {
    const repository = folderWith({
      '.gitignore': '*.tmp\n/app/secret-plans\n',
      'app/.gitignore': '*.bak\n',
      'app/a.ts': '',
      'app/a.tmp': '',
      'app/a.bak': '',
      'app/a.mine': '',
      'app/secret-plans/x.ts': '',
      'app/nested/b.bak': '',
    });
    git(repository, 'init', '-q');
    writeFileSync(path.join(repository, '.git/info/exclude'), '*.mine\n');
    assert.deepEqual(Object.keys(await walked(path.join(repository, 'app'))), [
      '.gitignore',
      'a.ts',
    ]);
  });

  it('follows the file that a worktree has instead of a .git folder', async () => {
    const root = folderWith({
      'main/.git/info/exclude': '*.mine\n',
      'main/.git/worktrees/tree/commondir': '../..\n',
      'tree/.git': 'gitdir: ../main/.git/worktrees/tree\n',
      'tree/a.ts': '',
      'tree/a.mine': '',
    });
    assert.deepEqual(await walked(path.join(root, 'tree')), { 'a.ts': 'read' });
  });

  it('reads a folder that its repository ignores when it is asked for', async () => {
    const repository = folderWith({
      '.gitignore': 'out/\n',
      'out/a.ts': '',
      'out/.gitignore': 'b.ts\n',
      'out/b.ts': '',
    });
    git(repository, 'init', '-q');
    const names = Object.keys(await walked(path.join(repository, 'out')));
    assert.deepEqual(names, ['.gitignore', 'a.ts']);
  });

  it('never follows links: what is inside comes once, what is outside does not come', async () => {
    const outside = folderWith({ 'x.ts': 'x' });
    const root = folderWith({ 'src/a.ts': '', '.env': 'KEY=1' });
    const link = (target: string, name: string) => symlinkSync(target, path.join(root, name));
    link('src/a.ts', 'again.ts');
    link('.env', 'notes.txt');
    link('src', 'same-folder');
    link('.', 'loop');
    link(outside, 'elsewhere');
    link(path.join(outside, 'x.ts'), 'x.ts');
    link('missing', 'broken');
    link('self', 'self');
    assert.deepEqual(await walked(root), {
      '.env': 'read',
      'again.ts': 'path: link to src/a.ts',
      broken: 'out: broken link',
      elsewhere: 'out: link out of the folder',
      loop: 'path: link to the folder itself',
      'notes.txt': 'path: link to .env',
      'same-folder': 'path: link to src',
      self: 'out: link loop',
      'src/a.ts': 'read',
      'x.ts': 'out: link out of the folder',
    });
  });

  it('reads a folder that is named by a link, under the name that was given', async () => {
    const root = folderWith({ 'real/a.ts': '' });
    symlinkSync('real', path.join(root, 'named'));
    const [file] = await walkFolder(path.join(root, 'named'));
    assert.equal(file?.absolutePath, path.join(root, 'named', 'a.ts'));
    assert.equal(file.skipped, null);
  });

  it('passes over pipes and sockets', async () => {
    const root = folderWith({ 'a.ts': '' });
    assert.equal(
      spawnSync('mkfifo', [path.join(root, 'pipe'), path.join(root, '.gitignore')]).status,
      0,
    );
    const server = net.createServer().listen(path.join(root, 'socket'));
    await new Promise((resolve) => server.once('listening', resolve));
    try {
      assert.deepEqual(await walked(root), {
        '.gitignore': 'out: not a regular file',
        'a.ts': 'read',
        pipe: 'out: not a regular file',
        socket: 'out: not a regular file',
      });
    } finally {
      server.close();
    }
  });

  it('takes odd names as they are', async () => {
    const odd = [
      '-rf',
      'a\nb',
      'quote".ts',
      "it's",
      'tab\t',
      ' lead',
      'ü.ts',
      '🙂',
      '..hidden',
      '*',
      'x'.repeat(255),
    ];
    const root = folderWith(Object.fromEntries(odd.map((name) => [name, ''])));
    writeFileSync(Buffer.concat([Buffer.from(`${root}/caf`), Buffer.from([0xe9])]), '');
    const files = await walked(root);
    assert.deepEqual(new Set(Object.keys(files)), new Set([...odd, 'caf\\xe9']));
    assert.equal(files['caf\\xe9'], 'out: name is not UTF-8');
  });

  it('leaves out folders with secret names as a whole', async () => {
    const root = folderWith({ '.env.d/production': '', 'id_service/a.ts': '' });
    assert.deepEqual(await walked(root), {
      '.env.d/': 'out: secret name',
      'id_service/a.ts': 'read',
    });
  });

  it('says which folder cannot be read', async function () {
    if (!isRoot) this.skip();
    const root = folderWith({ 'a.ts': '', 'closed/b.ts': '' });
    chmodSync(root, 0o755);
    chmodSync(path.join(root, 'closed'), 0o700);
    assert.deepEqual(await asNobody(() => walked(root)), {
      'a.ts': 'read',
      'closed/': 'out: unreadable: EACCES',
    });
    await assert.rejects(
      asNobody(() => walkFolder(path.join(root, 'closed'))),
      { code: 'unreadableFile', message: /closed cannot be read: EACCES/ },
    );
  });

  it('wants a folder that exists', async () => {
    const root = folderWith({ file: '' });
    const missing = path.join(root, 'none');
    await assert.rejects(walkFolder(missing), {
      code: 'folderNotFound',
      message: /none \(ENOENT\)/,
    });
    await assert.rejects(walkFolder(path.join(root, 'file')), {
      code: 'folderNotFound',
      message: /is not a folder/,
    });
  });

  it('tells how far it is, and stops when told to', async () => {
    const root = folderWith();
    for (let n = 0; n < 40; n++) {
      mkdirSync(path.join(root, `d${n}`));
      for (let m = 0; m < 20; m++) writeFileSync(path.join(root, `d${n}/f${m}`), '');
    }
    const seen: number[] = [];
    await walkFolder(root, { onProgress: (files) => seen.push(files) });
    assert.deepEqual(seen, [256, 512, 768]);
    const abort = new AbortController();
    const walk = walkFolder(root, { signal: abort.signal, onProgress: () => abort.abort() });
    await assert.rejects(walk, { name: 'AbortError' });
  });

  it('does not open large files', async () => {
    const root = folderWith({ 'huge.txt': '' });
    truncateSync(path.join(root, 'huge.txt'), 2 * 2 ** 30);
    const [file] = await walkFolder(root);
    assert.equal(file?.sizeBytes, 2 * 2 ** 30);
  });
});
