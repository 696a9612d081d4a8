import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { Engine } from '../../extension/engine/client';
import { defaultParams } from '../../extension/engine/params';
import {
  childrenOf,
  cli,
  cpuMs,
  dist,
  isAlive,
  startCli,
  temporaryFolder,
  testModel,
  untilGone,
  writeFiles,
} from './support/longsight';

const attentionShape = ['coverageMean', 'coverageP5', 'density', 'layers', 'sparseDensity'];
const statsShape = [
  'attention',
  'backend',
  'computedTokens',
  'decodeTokensPerSecond',
  'device',
  'fallback',
  'kvCache',
  'memory',
  'model',
  'params',
  'phases',
  'prefillTokensPerSecond',
  'promptTokens',
  'reusedTokens',
  'speculation',
  'thinking',
  'times',
  'ttftMs',
];
const keys = (value: object) => Object.keys(value).sort();

describe('integration: command line with a real model', function () {
  this.timeout(300_000);
  const folder = temporaryFolder();
  const model = testModel();
  let workspace: string;
  before(() => {
    const lines = Array.from({ length: 40 }, (_, i) => `export const value${i} = ${i * i};`);
    workspace = writeFiles(path.join(folder(), 'project'), {
      'README.md': '# Squares\nThis project lists squares.\n',
      'squares.ts': `${lines.join('\n')}\n`,
      '.env': 'TOKEN=secret\n',
    });
  });

  /** Standard output is exactly one JSON object on one line. */
  const json = (stdout: string) => {
    assert.match(stdout, /^\{[^\n]*\}\n$/);
    return JSON.parse(stdout);
  };
  const ask = (...more: string[]) => [
    'ask',
    ...['--workspace', workspace, '--question', 'What does this project list?'],
    ...['--model', model, '--context-tokens', '2048', ...more],
  ];

  it('asks: one JSON object of the documented shape', async () => {
    const { status, stdout, stderr } = await cli(ask('--json', '--max-tokens', '8'));
    assert.equal(status, 0, stderr);
    const result = json(stdout);
    assert.deepEqual(keys(result), ['answer', 'citations', 'files', 'stats', 'thinking']);
    assert.match(result.answer, /^read 2 of 3 files\n\n/);
    assert.deepEqual(result.files, { full: 2, path: 0, out: 1 });
    assert.ok(Array.isArray(result.citations));
    for (const citation of result.citations) {
      assert.deepEqual(keys(citation), ['endLine', 'path', 'startLine', 'status']);
    }
    const { stats } = result;
    assert.deepEqual(keys(stats), statsShape);
    assert.deepEqual(keys(stats.attention), attentionShape);
    assert.deepEqual(keys(stats.memory), ['fixedBytes', 'kvBytes', 'scratchBytes', 'weightBytes']);
    const sum = Object.values<number>(stats.phases).reduce((total, ms) => total + ms, 0);
    assert.ok(Math.abs(sum - stats.ttftMs) <= 0.02 * stats.ttftMs);
    assert.equal(stats.params.epsilon, 0.003);
    assert.match(stderr, /Prefill/);
  });

  it('streams the answer to standard output, statistics to standard error', async () => {
    const { status, stdout, stderr } = await cli(ask('--max-tokens', '4', '--policy', 'dense'));
    assert.equal(status, 0, stderr);
    assert.match(stdout, /^read 2 of 3 files\n\n./);
    assert.ok(!stdout.includes('TTFT'));
    assert.match(
      stderr,
      /TTFT .* = queue .*\nPrompt .*\nAnswer .*\nAttention +dense: density 100%/,
    );
  });

  it('packs', async () => {
    const { status, stdout } = await cli(
      ['pack', '--workspace', workspace, '--model', model, '--json', '--text'],
      {},
    );
    assert.equal(status, 0);
    const { files, totalTokens, text } = json(stdout);
    assert.deepEqual(
      files.map((file: { path: string; tier: string; reason: string }) => [
        file.path,
        file.tier,
        file.reason,
      ]),
      [
        ['README.md', 'full', 'readme'],
        ['.env', 'out', 'secret name'],
        ['squares.ts', 'full', 'source'],
      ],
    );
    assert.ok(totalTokens > 300 && text.includes('value39 = 1521') && !text.includes('secret'));
  });

  it('scores against dense', async () => {
    const text = path.join(folder(), 'text');
    copyFileSync('docs/sample-attention.md', text);
    const flags = '--tokens 700 --tail 200 --dense-below-tokens 128 --segment-rows 256 --json';
    const base = ['score', '--text', text, '--model', model, ...flags.split(' ')];
    const peak = await cli([...base, '--against', 'dense', '--window-tokens', '128']);
    assert.equal(peak.status, 0, peak.stderr);
    const sparse = json(peak.stdout);
    assert.deepEqual(keys(sparse), [
      ...['coverageMean', 'coverageP5', 'density', 'kl', 'nll'],
      ...['perplexity', 'sparseDensity', 'tokens', 'top1Agreement'],
    ]);
    assert.equal(sparse.tokens, 700);
    assert.ok(sparse.kl > 0 && sparse.kl < 0.2, `${sparse.kl}`);
    assert.ok(sparse.top1Agreement > 0.8 && sparse.sparseDensity < 1);
    assert.ok(Math.abs(sparse.perplexity - Math.exp(sparse.nll)) < 1e-6 * sparse.perplexity);
    const dense = json((await cli([...base, '--policy', 'dense'])).stdout);
    assert.ok(!('kl' in dense) && dense.density === 1 && dense.sparseDensity === null);
    assert.ok(Math.abs(dense.nll - sparse.nll) < 0.2, `${dense.nll} ${sparse.nll}`);
  });

  it('evaluates: what score says, for every policy, tail and planted value; keeps a plot', async () => {
    const text = path.join(folder(), 'text');
    const plot = path.join(folder(), 'plot.svg');
    copyFileSync('docs/sample-attention.md', text);
    const sparse = ['--dense-below-tokens', '0', '--segment-rows', '256', '--window-tokens', '128'];
    const base = ['--text', text, '--model', model, '--tokens', '900', '--json', ...sparse];
    const evaluated = await cli([
      ...['evaluate', ...base, '--tail', '60,200', '--epsilon', '0.003,0.05'],
      ...['--policy', 'dense,peak,mass', '--alpha', '0.9', '--probe', '--plot', plot],
    ]);
    assert.equal(evaluated.status, 0, evaluated.stderr);
    const { rows, probes } = json(evaluated.stdout);
    assert.deepEqual(
      rows.map(
        (row: { policy: string; epsilon: number | null; alpha: number | null; tail: number }) =>
          [row.policy, row.epsilon ?? row.alpha, row.tail].join(' '),
      ),
      [
        'dense  200',
        'dense  60',
        ...['0.003', '0.05'].flatMap((e) => [`peak ${e} 200`, `peak ${e} 60`]),
        ...['mass 0.9 200', 'mass 0.9 60'],
      ],
    );
    for (const row of rows) {
      for (const [name, value] of Object.entries(row)) {
        if (typeof value === 'number') assert.ok(Number.isFinite(value), name);
      }
      assert.ok(row.prefillMs > 0 === (row.tail === 200), `${row.tail}: ${row.prefillMs}`);
    }
    const [dense, , close, , far] = rows;
    assert.deepEqual([dense.kl, dense.top1Agreement, dense.density], [0, 1, 1]);
    assert.ok(far.sparseDensity < close.sparseDensity && far.kl > close.kl && close.kl > 0);

    const scored = await cli(['score', ...base, '--tail', '200', '--against', 'dense']);
    const score = json(scored.stdout);
    for (const name of ['density', 'sparseDensity', 'coverageMean', 'coverageP5', 'nll']) {
      assert.equal(close[name], score[name], name);
    }
    assert.ok(Math.abs(close.kl - score.kl) < 0.02 * score.kl, `${close.kl} ${score.kl}`);
    assert.ok(Math.abs(close.top1Agreement - score.top1Agreement) < 0.01);

    assert.equal(probes.length, 5 * 4);
    for (const probe of probes) {
      assert.ok(probe.logProbability < 0 && probe.logProbability > 2 * probe.chance);
      assert.ok(probe.depth > 0 && probe.depth < 1);
    }
    const read = probes.filter(({ policy }: { policy: string }) => policy === 'dense');
    const mean =
      read.reduce((sum: number, one: { logProbability: number }) => sum + one.logProbability, 0) /
      5;
    assert.ok(mean > read[0].chance / 2, `${mean}: the values are read, not guessed`);
    assert.match(readFileSync(plot, 'utf8'), /^<svg [^]*<polyline[^]*<\/svg>\n$/);
  });

  it('prints what was evaluated before Ctrl-C', async () => {
    const text = path.join(folder(), 'long');
    writeFileSync(text, 'All work and no play makes a long text.\n'.repeat(400));
    const flags = ['--text', text, '--model', model, '--tokens', '600,3000', '--tail', '64'];
    const running = startCli(['evaluate', ...flags, '--policy', 'peak', '--json']);
    await running.said(/1 of 8: /);
    running.process.kill('SIGINT');
    const { status, stdout } = await running.finished;
    assert.equal(status, 130);
    const { rows, error } = json(stdout);
    assert.equal(error.code, 'cancelled');
    assert.ok(rows.length >= 1 && rows.length < 8);
    assert.equal(rows[0].policy, 'dense');
  });

  it('calibrates beside the model; score uses that, and says so', async () => {
    const ownModel = path.join(folder(), 'calibrated.gguf');
    symlinkSync(model, ownModel);
    const text = path.join(folder(), 'sample');
    const unseen = path.join(folder(), 'unseen');
    copyFileSync('docs/sample-attention.md', text);
    copyFileSync('README.md', unseen);
    const sparse = ['--segment-rows', '256', '--window-tokens', '128'];
    const calibrate = ['calibrate', '--text', text, '--model', ownModel, '--json', ...sparse];
    const score = ['score', '--text', unseen, '--model', ownModel, '--json', ...sparse];
    const scored = ['--against', 'dense', '--dense-below-tokens', '0', '--tokens', '1200'];

    const byKl = json((await cli([...calibrate, '--tokens', '600', '--kl', '0.02'])).stdout);
    assert.ok(byKl.kl > 0 && byKl.kl <= 0.02, `${byKl.kl}`);
    const byDensity = await cli([...calibrate, '--tokens', '1200']);
    assert.equal(byDensity.status, 0, byDensity.stderr);
    const { path: kept, plain, chosen } = json(byDensity.stdout);
    assert.equal(kept, `${ownModel}.calibration.json`);
    assert.ok(Math.abs(chosen.density - plain.density) < 0.02, `${chosen.density}`);

    const byHead = json((await cli([...score, ...scored])).stdout);
    const plainly = json((await cli([...score, ...scored, '--calibration', 'off'])).stdout);
    assert.deepEqual([byHead.calibrated, plainly.calibrated], [true, undefined]);
    assert.ok(Math.abs(byHead.sparseDensity - plainly.sparseDensity) < 0.1);
    assert.ok(byHead.kl < plainly.kl, `${byHead.kl} ${plainly.kl}`);
  });

  it('benches', async () => {
    const { status, stdout, stderr } = await cli(
      ['bench', '--tokens', '64,200', '--decode', '3', '--model', model, '--json'],
      {},
    );
    assert.equal(status, 0, stderr);
    const { results } = json(stdout);
    assert.deepEqual(
      results.map(({ tokens }: { tokens: number }) => tokens),
      [64, 200],
    );
    for (const row of results) {
      assert.deepEqual(keys(row), [
        ...['coverageMean', 'decodeTokensPerSecond', 'density', 'peakBytes', 'prefillMs'],
        ...['reusedTokens', 'sparseDensity', 'speculation', 'times', 'tokens', 'tokensPerSecond'],
        'ttftMs',
      ]);
      assert.ok(row.ttftMs >= row.prefillMs && row.reusedTokens === 0);
      const speed = (1000 * row.tokens) / row.prefillMs;
      assert.ok(Math.abs(row.tokensPerSecond - speed) < 0.05 * speed);
      assert.ok(row.decodeTokensPerSecond > 0 && row.peakBytes > statSync(model).size / 2);
    }
    assert.match(stderr, /generated words/);
  });

  it('examines the machine, the model and the memory', async () => {
    const { status, stdout } = await cli(['doctor', '--model', model, '--json']);
    assert.equal(status, 0);
    const result = json(stdout);
    assert.equal(result.devices[0].usable, true);
    assert.ok(result.cpuFeatures.length > 0 && result.kernels.attention !== '');
    assert.equal(result.model.architecture, 'llama');
    const cpu = result.memory.at(-1);
    assert.ok(cpu.device === 'cpu' && cpu.fits && cpu.kvBytes > 0);
    assert.deepEqual(result.problems, []);
  });

  it('says that there is no GPU, answers on the CPU, and fails where one is demanded', async function () {
    if (existsSync('/dev/nvidiactl')) this.skip();
    const doctor = await cli(['doctor', '--json', '--model', model]);
    assert.deepEqual(json(doctor.stdout).devices.slice(1), [
      { name: 'cuda', usable: false, reason: 'No NVIDIA GPU was found.' },
    ]);
    const answered = await cli(ask('--json', '--max-tokens', '1', '--backend', 'auto'));
    const { backend, device, fallback } = json(answered.stdout).stats;
    assert.deepEqual([backend, device, fallback], ['cpu', 'CPU', '']);
    assert.ok(!answered.stderr.includes('On the CPU'), answered.stderr);
    const failed = await cli(ask('--json', '--backend', 'cuda'));
    assert.equal(failed.status, 1);
    assert.equal(json(failed.stdout).error.code, 'deviceUnavailable');
    assert.match(failed.stderr, /No NVIDIA GPU was found\. Use the backend cpu or auto\./);
  });

  it('reports an addon that does not load, and still examines the machine', async () => {
    const copy = path.join(folder(), 'broken', 'dist');
    mkdirSync(copy, { recursive: true });
    copyFileSync('package.json', path.join(copy, '..', 'package.json'));
    for (const name of readdirSync(dist).filter((entry) => entry.endsWith('.js'))) {
      copyFileSync(path.join(dist, name), path.join(copy, name));
    }
    writeFileSync(path.join(copy, 'longsight.node'), 'not a library');
    const failed = await cli(ask('--json'), {}, copy);
    assert.equal(failed.status, 1);
    const { error } = json(failed.stdout);
    assert.equal(error.code, 'addonFailedToLoad');
    assert.ok(error.message.includes(path.join(copy, 'longsight.node')), error.message);
    assert.ok(error.action.length > 0);
    const doctor = await cli(['doctor', '--json', '--model', model], {}, copy);
    assert.equal(doctor.status, 1);
    const report = json(doctor.stdout);
    assert.equal(report.devices[0].usable, false);
    assert.equal(report.problems[0].code, 'addonFailedToLoad');

    const engine = new Engine({ workerPath: path.join(copy, 'worker.js') });
    try {
      const request = {
        path: model,
        backend: 'auto' as const,
        device: -1,
        threads: 0,
        contextTokens: 0,
        kvCache: 'bf16' as const,
      };
      const body = { model: request, params: { ...defaultParams } };
      const text = Buffer.from('some text');
      const score = { tokens: 0, tail: 0, tailPolicy: 'same' as const, against: null };
      const job = engine.score({ ...body, ...score, text, ropeBaseScale: 1 });
      await assert.rejects(job.result, { code: 'addonFailedToLoad' });
      const { pid } = engine;
      const again = await engine.doctor(body).result;
      assert.equal(again.problems[0]?.code, 'addonFailedToLoad');
      assert.equal(engine.pid, pid, 'the process that cannot load the addon still answers');
    } finally {
      await engine.dispose();
    }
  });

  it('ends with 2 for wrong usage and prints nothing but the error', async () => {
    const wrong = await cli(['ask', '--workspace', workspace, '--json', '--epsilon', '2']);
    assert.equal(wrong.status, 2);
    assert.match(json(wrong.stdout).error.message, /question|epsilon = 2/);
    const unknown = await cli(ask('--frobnicate'));
    assert.equal(unknown.status, 2);
    assert.equal(unknown.stdout, '');
    assert.match(unknown.stderr, /--frobnicate/);
    assert.equal((await cli(['--version'])).stdout.trim().split('.').length, 3);
  });

  it('stops at Ctrl-C: status 130, no process left', async () => {
    const running = startCli(ask('--json', '--max-tokens', '1000'), { detached: true });
    await running.said(/Prefill/);
    const [engine] = childrenOf(running.process.pid!);
    // A terminal signals the whole group.
    process.kill(-running.process.pid!, 'SIGINT');
    const { status, stdout } = await running.finished;
    assert.equal(status, 130);
    assert.equal(json(stdout).error.code, 'cancelled');
    assert.ok(await untilGone(engine!, 2_000));
  });

  it('leaves no process when it is killed in the middle of a prefill', async () => {
    const running = startCli(ask('--threads', '2'));
    await running.said(/Prefill/);
    await wait(200);
    const [engine] = childrenOf(running.process.pid!);
    assert.ok(isAlive(engine!) && cpuMs(engine!) > 0);
    process.kill(running.process.pid!, 'SIGKILL');
    assert.ok(await untilGone(engine!, 2_000), 'the engine process lives on');
    await running.finished;
  });

  it('ends when the reader of its output goes', async () => {
    const running = startCli(ask('--max-tokens', '1000'));
    running.process.stdout!.once('data', () => running.process.stdout!.destroy());
    const { status, stderr } = await running.finished;
    assert.equal(status, 1);
    assert.ok(!/EPIPE|at .*\.js/.test(stderr), stderr);
  });

  it('says in a sentence that its output cannot be written', async () => {
    const full = openSync('/dev/full', 'w');
    const run = spawnSync(
      process.execPath,
      [path.join(dist, 'cli.js'), ...ask('--max-tokens', '8')],
      {
        stdio: ['ignore', full, 'pipe'],
        encoding: 'utf8',
      },
    );
    closeSync(full);
    assert.equal(run.status, 1);
    assert.match(run.stderr, /^longsight: Standard output cannot be written \(ENOSPC\)\.$/m);
    assert.ok(!/at .*\.js/.test(run.stderr), run.stderr);
  });
});
