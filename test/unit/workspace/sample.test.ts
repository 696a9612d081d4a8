import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { takeSnapshot } from '../../../extension/workspace/snapshot';

const sample = path.resolve('test/fixtures/sample-workspace');

describe('sample workspace', () => {
  it('is read whole', async () => {
    const { files, read } = await takeSnapshot({
      folders: [{ name: 'sample', path: sample }],
      unsaved: {},
    });
    for (const file of files) assert.ok('text' in (file.skipped ?? (await read(file))), file.path);
    assert.equal(files[0]?.path, 'README.md');
  });

  it('works: its own tests pass', function () {
    this.timeout(60_000);
    const { status, stdout } = spawnSync(process.execPath, ['--test', 'test/'], {
      cwd: sample,
      encoding: 'utf8',
    });
    assert.equal(status, 0, stdout);
    assert.match(stdout, /^# pass 7$/m);
  });
});
