import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import path from 'node:path';
import {
  ChildProbe,
  parseDriverVersion,
  type CudaState,
  type ProbeParts,
  type ProbeReply,
} from '../../../extension/engine/cudaProbe';
import { forkOptions } from '../../../extension/engine/spawn';
import { folderWith, removeFolders } from '../workspace/folders';

const gpu = {
  index: 0,
  name: 'NVIDIA A100',
  computeCapability: '8.0',
  totalBytes: 80e9,
  freeBytes: 79e9,
};

describe('engine/cudaProbe', function () {
  this.timeout(30_000);
  let started = 0;
  beforeEach(() => (started = 0));
  afterEach(removeFolders);

  /** A machine with a GPU, whose probing process runs this script. */
  function machine(script: string, over: Partial<ProbeParts> = {}): ChildProbe {
    const file = path.join(folderWith({ 'child.cjs': script }), 'child.cjs');
    return new ChildProbe({
      hasGpu: () => true,
      hasLibrary: () => true,
      driverVersion: () => '580.65.06',
      start: () => {
        started++;
        return fork(file, [], forkOptions({ env: process.env, electron: false }));
      },
      timeoutMs: 20_000,
      ...over,
    });
  }

  function replying(reply: ProbeReply, over: Partial<ProbeParts> = {}): ChildProbe {
    return machine(
      `process.send(${JSON.stringify(reply)}, () => process.kill(process.pid, 'SIGKILL'));`,
      over,
    );
  }

  function problemOf({ usable, problem }: CudaState) {
    assert.deepEqual(usable, []);
    assert.ok(problem);
    return problem;
  }

  it('starts nothing where there is no GPU, or no engine for one', async () => {
    const none = problemOf(await machine('', { hasGpu: () => false }).state());
    assert.deepEqual(none, { message: 'No NVIDIA GPU was found.', action: '', fixable: false });
    const missing = problemOf(await machine('', { hasLibrary: () => false }).state());
    assert.match(missing.message, /longsight-cuda\.so/);
    assert.match(missing.action, /npm run build -- --cuda/);
    assert.equal(missing.fixable, true);
    assert.equal(started, 0);
  });

  it('takes the answer of the process, also when that dies afterwards, and remembers it', async () => {
    const refused = { index: 1, name: 'GTX 1080', reason: 'compute capability 6.1' };
    const probe = replying({
      devices: { usable: [gpu], refused: [refused], driverCuda: '13.0' },
    });
    const state = await probe.state();
    assert.deepEqual(state, { usable: [gpu], refused: [refused], problem: null });
    assert.equal(await probe.state(), state);
    assert.equal(started, 1);
    assert.deepEqual(await probe.fresh(), state);
    assert.equal(started, 2);
  });

  it('names GPUs that are too old, which nobody can fix', async () => {
    const old = { index: 0, name: 'GTX 1080', reason: 'compute capability 6.1; 8.0 is needed' };
    const devices = { usable: [], refused: [old], driverCuda: '13.0' };
    const problem = problemOf(await replying({ devices }).state());
    assert.match(problem.message, /GTX 1080, compute capability 6\.1; 8\.0 is needed\./);
    assert.equal(problem.fixable, false);
    const none = { usable: [], refused: [], driverCuda: '13.0' };
    assert.match(problemOf(await replying({ devices: none }).state()).message, /shows no GPU/);
  });

  it('tells the number of a driver that is too old, and else what the engine says', async () => {
    const error = {
      code: 'deviceUnavailable' as const,
      message: 'The driver runs CUDA 12.2.',
      action: 'Update it.',
    };
    const old = problemOf(await replying({ error }, { driverVersion: () => '535.183.01' }).state());
    assert.equal(old.message, 'The NVIDIA driver is 535.183.01; the GPU needs 580 or newer.');
    assert.match(old.action, /^Update the driver/);
    assert.equal(old.fixable, true);
    for (const driverVersion of [() => '580.65.06', () => undefined]) {
      const other = problemOf(await replying({ error }, { driverVersion }).state());
      assert.deepEqual(other, { message: error.message, action: error.action, fixable: true });
    }
  });

  it('survives a crash, with the last words', async () => {
    const crash = "console.error('no kernel module'); process.kill(process.pid, 'SIGSEGV');";
    const { message, fixable } = problemOf(await machine(crash).state());
    assert.match(message, /was ended by signal SIGSEGV/);
    assert.equal(fixable, true);
    const exit = "console.error('no kernel module'); process.exitCode = 3;";
    const said = problemOf(await machine(`${exit} process.disconnect();`).state());
    assert.match(said.message, /exit code 3\. Its last line: no kernel module/);
    const unstartable = { start: () => assert.fail('EAGAIN') };
    assert.match(
      problemOf(await machine('', unstartable).state()).message,
      /not be started.*EAGAIN/,
    );
  });

  it('does not wait for a driver that blocks', async () => {
    const begin = performance.now();
    const hang = machine('setInterval(() => {}, 1000);', { timeoutMs: 300 });
    const { message } = problemOf(await hang.state());
    assert.match(message, /no answer after 0\.3 s/);
    assert.ok(performance.now() - begin < 5000);
  });

  it('reads the version of the kernel module', () => {
    const closed =
      'NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n' +
      'GCC version:  gcc version 12.2.0\n';
    const open =
      'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@x)\n';
    assert.equal(parseDriverVersion(closed), '535.183.01');
    assert.equal(parseDriverVersion(open), '580.65.06');
    assert.equal(parseDriverVersion(''), undefined);
  });
});
