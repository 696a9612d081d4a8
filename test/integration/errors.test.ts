import assert from 'node:assert/strict';
import {
  chmodSync,
  copyFileSync,
  cpSync,
  mkdirSync,
  openSync,
  closeSync,
  readSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import type { EngineErrorInfo } from '../../extension/engine/protocol';
import { GgufHeader } from './support/gguf';
import { cli, dist, temporaryFolder, testModel, writeFiles } from './support/longsight';

/** Everything here fails before or right after the model's header is read: seconds in all. */
describe('integration: errors that users can act on', function () {
  this.timeout(120_000);
  const folder = temporaryFolder();
  const model = testModel();
  let workspace: string;
  /** As root nothing is unreadable, so these tests run as somebody else. */
  const nobody = process.getuid?.() === 0 ? 65534 : undefined;
  let bundle = dist;
  const asNobody = () => (nobody === undefined ? {} : { uid: nobody, gid: nobody, cwd: folder() });
  before(() => {
    workspace = writeFiles(path.join(folder(), 'project'), { 'a.ts': 'export const a = 1;\n' });
    // Another user reads some of this, and may not see into the repository.
    chmodSync(folder(), 0o755);
    if (nobody === undefined) return;
    bundle = path.join(folder(), 'installed', 'dist');
    cpSync(dist, bundle, { recursive: true });
    copyFileSync(path.join(dist, '..', 'package.json'), path.join(bundle, '..', 'package.json'));
  });

  const asking = (over: Record<string, string> = {}, ...more: string[]) => [
    'ask',
    ...Object.entries({
      workspace,
      question: 'Why?',
      model,
      'context-tokens': '2048',
      ...over,
    }).flatMap(([name, value]) => [`--${name}`, value]),
    ...['--max-tokens', '2', '--json', ...more],
  ];
  const failing = async (args: string[], options = {}): Promise<EngineErrorInfo> => {
    const { status, stdout, stderr } = await cli(args, options, bundle);
    assert.equal(status, 1, stdout + stderr);
    assert.match(stdout, /^\{[^\n]*\}\n$/);
    const { error } = JSON.parse(stdout);
    assert.ok(error.message.length > 10 && error.action.length > 5, stdout);
    assert.ok(!/\n +at /.test(stderr), stderr);
    return error;
  };

  it('no model', async () => {
    const { status, stdout } = await cli(asking({ model: '' }), {
      env: { XDG_DATA_HOME: folder(), HOME: folder() },
    });
    assert.equal(status, 1);
    assert.equal(JSON.parse(stdout).error.code, 'noModel');
  });

  it('a model that is missing, a folder, or not allowed to be read', async () => {
    const missing = path.join(folder(), 'none.gguf');
    const error = await failing(asking({ model: missing }));
    assert.equal(error.code, 'modelNotFound');
    assert.ok(error.message.includes(missing));
    assert.equal((await failing(asking({ model: folder() }))).code, 'notGguf');
    const locked = path.join(folder(), 'locked.gguf');
    writeFileSync(locked, 'GGUF', { mode: 0o000 });
    assert.equal((await failing(asking({ model: locked }), asNobody())).code, 'unreadableFile');
  });

  it('a foreign file', async () => {
    const foreign = path.join(folder(), 'foreign.gguf');
    writeFileSync(foreign, 'PK\u0003\u0004 this is a zip archive, or so it says');
    assert.equal((await failing(asking({ model: foreign }))).code, 'notGguf');
    writeFileSync(foreign, '');
    assert.match((await failing(asking({ model: foreign }))).code, /notGguf|truncatedGguf/);
  });

  it('a truncated GGUF: in the header and in the weights', async () => {
    const truncated = path.join(folder(), 'truncated.gguf');
    const head = Buffer.alloc(50_000);
    const handle = openSync(model, 'r');
    readSync(handle, head, 0, head.length, 0);
    closeSync(handle);
    writeFileSync(truncated, head);
    assert.equal((await failing(asking({ model: truncated }))).code, 'truncatedGguf');
    GgufHeader.read(model).write(truncated);
    const { size } = statSync(truncated);
    const short = path.join(folder(), 'short.gguf');
    copyFileSync(model, short);
    truncateSync(short, size - 1_000_000);
    const error = await failing(asking({ model: short }));
    assert.equal(error.code, 'truncatedGguf');
    assert.match(error.message, /\d{6,}/);
  });

  it('an architecture that it does not run, before weights are read', async () => {
    const other = path.join(folder(), 'mamba.gguf');
    const header = GgufHeader.read(model);
    header.set('general.architecture', 'mamba');
    header.write(other);
    const error = await failing(asking({ model: other }));
    assert.equal(error.code, 'unsupportedArchitecture');
    assert.match(`${error.message} ${error.action}`, /mamba.*llama/s);
  });

  it('a model larger than the memory: a sparse file that declares 400 GB', async () => {
    const huge = path.join(folder(), 'huge.gguf');
    const header = GgufHeader.read(model);
    // Wide f32 feed-forward layers, and twice as many of them.
    const rows = 1 << 20;
    header.set('llama.feed_forward_length', rows);
    header.set('llama.block_count', 60);
    for (const tensor of header.tensors) {
      if (!/ffn_(gate|up|down)\.weight$/.test(tensor.name)) continue;
      tensor.dims[tensor.name.includes('down') ? 0 : 1] = BigInt(rows);
      tensor.type = 0;
    }
    for (const tensor of [...header.tensors]) {
      const layer = /^blk\.(\d+)\./.exec(tensor.name)?.[1];
      if (layer === undefined) continue;
      const name = tensor.name.replace(`blk.${layer}.`, `blk.${Number(layer) + 30}.`);
      header.tensors.push({ ...tensor, name });
    }
    const size = header.write(huge);
    assert.ok(size > 400e9, `${size}`);
    assert.ok(statSync(huge).blocks * 512 < 50e6);
    const error = await failing(asking({ model: huge }));
    assert.equal(error.code, 'notEnoughMemory', error.message);
    assert.match(error.message, /needs \d.*GiB.*available/);
  });

  it('a context for which the memory or the model is too small', async () => {
    const error = await failing(asking({ 'context-tokens': '100000' }));
    assert.equal(error.code, 'invalidParams');
    assert.match(error.message, /100000.*8192/);
    assert.equal((await failing(asking({ 'context-tokens': '128' }))).code, 'promptTooLong');
    assert.equal((await failing(asking({ 'context-tokens': '400' }))).code, 'overBudget');
  });

  it('folders: missing, a file, empty, unreadable', async () => {
    const of = (workspacePath: string) => asking({ workspace: workspacePath });
    assert.equal((await failing(of(path.join(folder(), 'none')))).code, 'folderNotFound');
    assert.equal((await failing(of(path.join(workspace, 'a.ts')))).code, 'folderNotFound');
    const empty = path.join(folder(), 'empty');
    mkdirSync(empty);
    assert.equal((await failing(of(empty))).code, 'emptyWorkspace');
    const locked = path.join(folder(), 'locked');
    mkdirSync(locked, { mode: 0o000 });
    assert.equal((await failing(of(locked), asNobody())).code, 'unreadableFile');
  });

  it('an unreadable file: listed as left out, and refused with --strict', async () => {
    const project = writeFiles(path.join(folder(), 'partly'), {
      'a.ts': 'export const a = 1;\n',
      'locked.ts': 'export const b = 2;\n',
    });
    chmodSync(path.join(project, 'locked.ts'), 0o000);
    const readable = path.join(folder(), 'model.gguf');
    copyFileSync(model, readable);
    chmodSync(readable, 0o644);
    const pack = ['pack', '--workspace', project, '--model', readable, '--json'];
    const packed = await cli(pack, asNobody(), bundle);
    assert.equal(packed.status, 0, packed.stderr);
    const locked = JSON.parse(packed.stdout).files.find(
      (file: { path: string }) => file.path === 'locked.ts',
    );
    assert.equal(locked.tier, 'out');
    assert.match(locked.reason, /unreadable.*EACCES/);
    const error = await failing(
      asking({ workspace: project, model: readable }, '--strict'),
      asNobody(),
    );
    assert.equal(error.code, 'unreadableFile');
    assert.ok(error.message.includes('locked.ts'));
  });

  it('--strict with more than fits', async () => {
    const big = writeFiles(path.join(folder(), 'big'), {
      'a.ts': 'export const a = 1;\n',
      'b.ts': 'export const b = [1, 2, 3];\n'.repeat(400),
    });
    const error = await failing(asking({ workspace: big }, '--strict'));
    assert.equal(error.code, 'overBudget');
    assert.match(error.message, /b\.ts/);
  });

  it('devices of later versions', async () => {
    assert.equal((await failing(asking({ backend: 'cuda' }))).code, 'deviceUnavailable');
  });
});
