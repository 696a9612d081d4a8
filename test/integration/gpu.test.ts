/**
 * The product on a GPU that is played by a library: probe, choice, answers, statistics and failures
 * through the real addon. What the real library computes is tested where a GPU is.
 */
import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import path from 'node:path';
import type { DoctorResult, EngineErrorInfo } from '../../extension/engine/protocol';
import { forkOptions } from '../../extension/engine/spawn';
import { cli, dist, temporaryFolder, testModel, workerPath, writeFiles } from './support/longsight';

describe('integration: GPU', function () {
  this.timeout(120_000);
  const folder = temporaryFolder();
  const model = testModel();
  const library = path.resolve('build/native/fake_cuda.so');
  let workspace: string;
  before(() => {
    assert.ok(existsSync(library), `${library} is built with the native tests`);
    workspace = writeFiles(path.join(folder(), 'project'), {
      'README.md': 'A project.\n',
      'src/a.ts': 'export const a = 1;\n'.repeat(20),
    });
  });

  const withGpu = (args: string[], behaviour = '') =>
    cli([...args, '--model', model, '--json'], {
      env: { LONGSIGHT_CUDA_LIBRARY: library, LONGSIGHT_FAKE_CUDA: behaviour },
    });
  const ask = (...more: string[]) => [
    ...['ask', '--workspace', workspace, '--question', 'Why?', '--max-tokens', '12'],
    ...['--context-tokens', '2048'],
    ...more,
  ];

  it('lists the GPUs, and what the model takes on each', async () => {
    const { status, stdout } = await withGpu(['doctor', '--context-tokens', '2048']);
    assert.equal(status, 0);
    const { devices, memory, problems } = JSON.parse(stdout) as DoctorResult;
    assert.deepEqual(
      devices.map(({ name, usable }) => [name, usable]),
      [
        ['cpu', true],
        ['cuda:0', true],
        ['cuda:1', true],
      ],
    );
    assert.deepEqual(
      memory.map(({ device, fits }) => [device, fits]),
      [
        ['cuda:0', true],
        ['cuda:1', true],
        ['cpu', true],
      ],
    );
    assert.ok(memory[0]!.fixedBytes > 0 && memory[2]!.fixedBytes === 0);
    assert.deepEqual(problems, []);
  });

  it('answers on the GPU by itself, on the one that is named, and on the CPU when asked', async () => {
    const auto = JSON.parse((await withGpu(ask())).stdout).stats;
    assert.equal(auto.backend, 'cuda');
    assert.match(auto.device, /^Fake \d$/);
    assert.equal(auto.fallback, '');
    assert.equal(Object.keys(auto.times).length, 7);
    const named = JSON.parse((await withGpu(ask('--device', '1'))).stdout).stats;
    assert.equal(named.device, 'Fake 1');
    const cpu = JSON.parse((await withGpu(ask('--backend', 'cpu'))).stdout).stats;
    assert.deepEqual([cpu.backend, cpu.device, cpu.times], ['cpu', 'CPU', null]);
    const missing = await withGpu(ask('--backend', 'cuda', '--device', '7'));
    assert.match(JSON.parse(missing.stdout).error.message, /no usable GPU 7; usable: 0 \(Fake 0\)/);
  });

  it('answers on the CPU when the driver is too old or crashes, and says so in one line', async () => {
    const cases: [string, RegExp][] = [
      ['oldDriver', /^On the CPU: The driver is 550\.1\.$/m],
      ['noDriver', /^On the CPU: There is no libcuda/m],
      ['crash', /^On the CPU: The NVIDIA driver cannot be used: .* ended by signal SIGABRT/m],
      ['unsupported', /^On the CPU: /m],
    ];
    for (const [behaviour, line] of cases) {
      const { status, stdout, stderr } = await withGpu(ask(), behaviour);
      assert.equal(status, 0, `${behaviour}: ${stderr}`);
      assert.match(stderr, line, behaviour);
      const { stats } = JSON.parse(stdout);
      assert.equal(stats.backend, 'cpu', behaviour);
      assert.ok(stats.fallback.length > 0, behaviour);
    }
  });

  it('says nothing about what nobody can fix, except where a GPU is demanded', async () => {
    for (const behaviour of ['noDevice', 'oldDevice']) {
      const quiet = await withGpu(ask(), behaviour);
      assert.ok(!quiet.stderr.includes('On the CPU'), quiet.stderr);
      const { status, stdout } = await withGpu(ask('--backend', 'cuda'), behaviour);
      assert.equal(status, 1);
      const { error } = JSON.parse(stdout) as { error: EngineErrorInfo };
      assert.equal(error.code, 'deviceUnavailable');
      assert.ok(error.action !== '');
    }
  });

  it('measures random weights, and says which shapes it knows', async () => {
    const bench = ['bench', '--tokens', '300', '--decode', '4', '--synthetic'];
    const { status, stdout, stderr } = await withGpu([
      ...[...bench, 'smollm2-135m', '--weights', 'q4_0', '--force-density', '0.2'],
      ...['--prefix', '512', '--new', '20'],
    ]);
    assert.equal(status, 0, stderr);
    const result = JSON.parse(stdout);
    assert.deepEqual([result.synthetic, result.forcedDensity, result.weights], [true, 0.2, 'q4_0']);
    assert.deepEqual(
      result.results.map((row: { tokens: number; reusedTokens: number }) => [
        row.tokens,
        row.reusedTokens,
      ]),
      [
        [300, 0],
        [532, 512],
      ],
    );
    assert.ok(result.results[0].times !== null && result.results[0].peakBytes > 0);
    const unknown = await withGpu([...bench, 'gpt-5']);
    assert.equal(unknown.status, 1);
    assert.match(JSON.parse(unknown.stdout).error.action, /llama-3\.1-8b/);
  });

  it('asks the shipped library in a process of its own, which then ends', async function () {
    if (!existsSync(path.join(dist, 'longsight-cuda.so'))) this.skip();
    if (existsSync('/dev/nvidiactl')) this.skip();
    const options = forkOptions({ env: process.env, electron: false });
    const child = fork(workerPath, ['--probe-cuda'], options);
    const [reply] = (await once(child, 'message')) as [{ error: EngineErrorInfo }];
    assert.equal(reply.error.code, 'deviceUnavailable', JSON.stringify(reply));
    assert.match(reply.error.message, /no NVIDIA driver/);
    assert.match(reply.error.action, /580/);
    const [, signal] = await once(child, 'exit');
    assert.equal(signal, 'SIGKILL');
  });
});
