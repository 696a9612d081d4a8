import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { evaluationPlot } from '../../../extension/cli/evaluationPlot';
import { evaluationText } from '../../../extension/cli/evaluationTable';
import { run, type Parts } from '../../../extension/cli/run';
import type { Engine, JobOptions } from '../../../extension/engine/client';
import { EngineError } from '../../../extension/engine/errors';
import type { EvaluationRow, ProbeRow } from '../../../extension/engine/evaluation';
import { startingParams } from '../../../extension/engine/params';
import type { EvaluateRequest, Event } from '../../../extension/engine/protocol';

const point = { text: 'src/a.py', tokens: 8192, ropeBaseScale: 1, alpha: null, epsilon: null };
const row = (over: Partial<EvaluationRow>): EvaluationRow => ({
  ...point,
  policy: 'peak',
  tail: 1024,
  density: 0.3,
  sparseDensity: 0.16,
  coverageMean: 0.95,
  coverageP5: 0.8,
  kl: 0.0046,
  top1Agreement: 0.984,
  nll: 1.25,
  prefillMs: 8300,
  ...over,
});
const dense = row({
  policy: 'dense',
  ...{ density: 1, sparseDensity: null, coverageMean: null, coverageP5: null },
  ...{ kl: 0, top1Agreement: 1, prefillMs: 12_500 },
});
const probe = (depth: number, over: Partial<ProbeRow> = {}): ProbeRow => ({
  ...point,
  policy: 'dense',
  depth,
  logProbability: -1,
  chance: -13.8,
  found: true,
  ...over,
});
const result = {
  model: 'Tiny & <Co>',
  settings: [{ policy: 'peak', params: startingParams('peak') }],
  rows: [
    dense,
    row({ epsilon: 0.003 }),
    row({ epsilon: 0.001, sparseDensity: 0.24, kl: 0.003 }),
    row({ policy: 'mass', alpha: 0.95, sparseDensity: 0.165, kl: 0.0074 }),
    row({ text: 'b "q".md', epsilon: 0.003, tail: 64, prefillMs: null, kl: 0.00001 }),
  ],
  probes: [probe(0.1), probe(0.3, { logProbability: -3, found: false }), probe(0.35)],
};

describe('cli/evaluate', () => {
  let folder: string;
  let out: string;
  let err: string;
  let asked: EvaluateRequest[];
  let events: Partial<Event>[];
  let outcome: object;
  let abort: AbortController;
  /** Whether Ctrl-C is pressed while the engine measures. */
  let interrupted: boolean;

  before(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'longsight-evaluate-'));
    writeFileSync(path.join(folder, 'a.py'), 'print(1)');
    writeFileSync(path.join(folder, 'b.md'), '# b');
  });
  after(() => rmSync(folder, { recursive: true }));
  beforeEach(() => {
    out = '';
    err = '';
    asked = [];
    events = [];
    outcome = result;
    abort = new AbortController();
    interrupted = false;
  });

  const cli = (...argv: string[]) => {
    const engine = {
      evaluate: (body: EvaluateRequest, options: JobOptions) => {
        asked.push(body);
        for (const event of events) options.onEvent?.(event as Event);
        if (interrupted) abort.abort();
        return {
          result: outcome instanceof Error ? Promise.reject(outcome) : Promise.resolve(outcome),
        };
      },
      dispose: async () => undefined,
    };
    const parts: Parts = {
      terminal: {
        stdout: (text) => (out += text),
        stderr: (text) => (err += text),
        rewritable: false,
        env: {},
        cwd: folder,
      },
      signal: abort.signal,
      version: '0.1.0',
      startEngine: () => engine as unknown as Engine,
      findModel: async () => '/models/found.gguf',
    };
    return run(['evaluate', ...argv], parts);
  };
  const measure = (...more: string[]) => cli('--text', 'a.py', '--tokens', '8192', ...more);

  it('makes a plan of the flags: every policy with its values, other parameters for all', async () => {
    const flags =
      '--text a.py --text b.md --tokens 8192,16384 --policy dense,peak,mass,paper --epsilon .001,.003 ' +
      '--alpha .9,.98 --tail 1024,64 --rope-base-scale 16384:4 --max-list-share 1 --probe';
    assert.equal(await cli(...flags.split(' ')), 0, err);
    const [plan] = asked;
    assert.deepEqual(
      plan!.texts.map(({ name, bytes }) => `${name} ${bytes.length}`),
      ['a.py 8', 'b.md 3'],
    );
    assert.deepEqual(plan!.lengths, [
      { tokens: 8192, ropeBaseScale: 1 },
      { tokens: 16384, ropeBaseScale: 4 },
    ]);
    assert.deepEqual([plan!.tails, plan!.probe], [[1024, 64], true]);
    assert.deepEqual(
      plan!.settings.map(({ policy, params }) =>
        [policy, params.policy, params.epsilon, params.alpha].join(' '),
      ),
      [
        'dense dense 0.003 0.95',
        'peak peak 0.001 0.95',
        'peak peak 0.003 0.95',
        'mass mass 0.003 0.9',
        'mass mass 0.003 0.98',
        'paper mass 0.003 0.9',
        'paper mass 0.003 0.98',
      ],
    );
    assert.ok(plan!.settings.every(({ params }) => params.maxListShare === 1));
    assert.deepEqual(plan!.settings.at(-1)!.params, {
      ...startingParams('paper'),
      alpha: 0.98,
      maxListShare: 1,
    });
  });

  it('has defaults for all but texts and lengths', async () => {
    assert.equal(await measure('--rope-base-scale', '2'), 0, err);
    assert.deepEqual(asked[0]!.tails, [1024]);
    assert.deepEqual(
      asked[0]!.settings.map(({ policy, params }) =>
        policy === 'peak'
          ? params.epsilon
          : policy === 'dense'
            ? policy
            : `${policy} ${params.alpha}`,
      ),
      [
        'dense',
        0.001,
        0.003,
        0.01,
        ...['mass', 'paper'].flatMap((name) => [0.9, 0.95, 0.98].map((a) => `${name} ${a}`)),
      ],
    );
    assert.deepEqual(asked[0]!.lengths, [{ tokens: 8192, ropeBaseScale: 2 }]);
    await cli('--text', 'a.py', '--tokens', '300');
    assert.deepEqual(asked[1]!.tails, [150]);
    await measure('--tail', '0', '--probe');
    assert.deepEqual(asked[2]!.tails, []);
  });

  it('calls wrong usage wrong', async () => {
    const wrong: [string, RegExp][] = [
      ['--tokens 8192', /--text is missing/],
      ['--text a.py', /--tokens is missing/],
      ['--text a.py --tokens 100,x', /--tokens x /],
      ['--text a.py --tokens 8192 --policy peak,odd', /odd .*dense, peak, mass, paper/],
      ['--text a.py --tokens 8192 --policy peak --epsilon .1,2', /epsilon = 2/],
      ['--text a.py --tokens 8192 --policy mass --alpha 0', /alpha = 0/],
      ['--text a.py --tokens 8192 --tail 8192', /--tail 8192 .*2 to 8191/],
      ['--text a.py --tokens 8192 --tail 0', /--tail 0 .*without --probe/],
      ['--text a.py --tokens 8192 --rope-base-scale 4096:2', /4096 is not one of the --tokens/],
      ['--text a.py --tokens 8192 --rope-base-scale 8192:0', /0 is outside/],
      ['--text a.py --tokens 8192 --segment-rows 300', /segmentRows = 300/],
      ['--from x.json --text a.py', /--text does not go with --from/],
    ];
    for (const [flags, message] of wrong) {
      err = '';
      assert.equal(await cli(...flags.split(' ')), 2, flags);
      assert.match(err, message, flags);
    }
    assert.deepEqual(asked, []);
  });

  it('prints tables, one JSON object, and writes the plot', async () => {
    assert.equal(await measure('--plot', 'p.svg'), 0, err);
    assert.match(out, /^src\/a\.py, 8,192 tokens, tail 1,024\n/);
    assert.match(readFileSync(path.join(folder, 'p.svg'), 'utf8'), /^<svg /);
    out = '';
    await measure('--json');
    assert.deepEqual(JSON.parse(out), result);
    assert.equal(out.split('\n').length, 2);
    assert.equal(await measure('--plot', 'none/p.svg'), 1);
    assert.match(err, /none\/p\.svg cannot be written/);
    assert.equal(await measure('--plot', '.'), 1);
    assert.match(err, /cannot be written: it is a folder/);
    assert.equal(asked.length, 2, 'a plot that cannot be written is found before the measurement');
  });

  it('tells what is done on standard error', async () => {
    events = [
      { type: 'evaluated', part: { row: result.rows[1]! }, done: 2, total: 5 },
      { type: 'evaluated', part: { probes: result.probes }, done: 3, total: 5 },
    ] as Partial<Event>[];
    await measure();
    assert.match(
      err,
      /2 of 5: src\/a\.py, .* peak ε 0\.003, tail 1,024: density 0\.160, KL 0\.0046, 8\.3 s/,
    );
    assert.match(err, /3 of 5: .* dense: 2 of 3 values found/);
  });

  it('keeps and prints what there is when the rest is cancelled or fails', async () => {
    events = [
      { type: 'evaluated', part: { row: result.rows[1]! }, done: 1, total: 2 },
    ] as Partial<Event>[];
    outcome = new EngineError('notEnoughMemory', 'Too little.', 'More.');
    assert.equal(await measure('--plot', 'part.svg'), 1);
    assert.match(out, /peak ε 0\.003 +0\.300 +0\.160/);
    assert.match(err, /longsight: Too little\. More\./);
    assert.match(readFileSync(path.join(folder, 'part.svg'), 'utf8'), /peak/);

    out = '';
    outcome = new EngineError('cancelled', 'Cancelled.', '');
    interrupted = true;
    assert.equal(await measure('--json'), 130);
    const { rows, error } = JSON.parse(out);
    assert.equal(rows.length, 1);
    assert.equal(error.code, 'cancelled');

    out = '';
    events = [];
    abort = new AbortController();
    assert.equal(await measure('--json'), 130);
    assert.deepEqual(Object.keys(JSON.parse(out)), ['error']);
  });

  it('shows kept results again, together and selected', async () => {
    const write = (name: string, value: unknown) =>
      writeFileSync(path.join(folder, name), JSON.stringify(value));
    write('one.json', result);
    write('two.json', { ...result, rows: [row({ text: 'c', tokens: 16384 })], probes: [] });
    const from = ['--from', 'one.json', '--from', 'two.json'];
    assert.equal(await cli(...from, '--json'), 0, err);
    assert.deepEqual([JSON.parse(out).rows.length, JSON.parse(out).model], [6, 'Tiny & <Co>']);
    out = '';
    await cli(...from, '--json', '--tail', '1024', '--tokens', '8192', '--policy', 'peak');
    assert.equal(JSON.parse(out).rows.length, 2);
    assert.deepEqual(JSON.parse(out).probes, []);
    assert.deepEqual(asked, []);
    write('other.json', { rows: 1 });
    write('old.json', { ...result, rows: [{ ...dense, coverageMean: undefined }] });
    for (const file of ['other.json', 'old.json', 'missing.json', 'a.py']) {
      assert.equal(await cli('--from', file), 1, file);
      assert.match(err, new RegExp(`${file} cannot be read`));
    }
  });
});

describe('cli/evaluationTable', () => {
  const lines = evaluationText(result).split('\n');

  it('groups by text, length and tail', () => {
    assert.deepEqual(lines.slice(0, 5), [
      'src/a.py, 8,192 tokens, tail 1,024',
      '              density  sparse  coverage     p5      KL  top-1     NLL   time',
      'dense           1.000       -         -      -       0   100%  1.2500   13 s',
      'peak ε 0.003    0.300   0.160     95.0%  80.0%  0.0046  98.4%  1.2500  8.3 s',
      'peak ε 0.001    0.300   0.240     95.0%  80.0%  0.0030  98.4%  1.2500  8.3 s',
    ]);
    assert.ok(lines.some((line) => line.endsWith('1.0e-5  98.4%  1.2500     -')));
  });

  it('averages planted values by depth', () => {
    assert.deepEqual(lines.slice(-4, -1), [
      'src/a.py, 8,192 tokens: log-probability of planted values by depth (nats; a guess has -13.8)',
      '       0-20%  20-40%  40-60%  60-80%  80-100%    all   found',
      'dense  -1.00   -2.00       -       -        -  -1.67  2 of 3',
    ]);
  });
});

describe('cli/evaluationPlot', () => {
  const svg = evaluationPlot(result);

  it('is well-formed, and escapes names', () => {
    assertWellFormed(svg);
    assert.match(svg, /Tiny &#38; &#60;Co&#62;/);
    assert.match(svg, /b &#34;q&#34;\.md/);
  });

  it('draws a panel a text, length and tail, a curve a policy, a mark a sparse measurement', () => {
    assert.equal(svg.match(/role="group"/g)!.length, 2);
    assert.equal(svg.match(/<polyline/g)!.length, 3);
    // Also one mark a policy in the legend.
    assert.equal(svg.match(/class="mark/g)!.length, 4 + 2);
    assert.ok(!svg.includes('NaN') && !svg.includes('Infinity'));
  });

  it('can be read without being seen, in light and dark', () => {
    assert.match(svg, /role="img" aria-labelledby="title description"/);
    assert.match(svg, /<title id="title">KL from dense/);
    assert.match(svg, /<desc id="description">[^<]*peak ε 0\.003: density 16\.0 %, KL 0\.0046/);
    assert.match(svg, /density of sparse rows \(%\)/);
    assert.match(svg, /KL in nats, log scale/);
    assert.match(svg, /@media \(prefers-color-scheme:dark\)/);
  });

  it('places more density further right and more KL further up', () => {
    const curve = /<polyline class="curve look0" points="([\d.,]+) ([\d.,]+)"/.exec(svg)!;
    const [[leftX, leftY], [rightX, rightY]] = [curve[1]!, curve[2]!].map((pair) =>
      pair.split(',').map(Number),
    ) as [[number, number], [number, number]];
    assert.ok(leftX < rightX, 'density .16 before .24');
    assert.ok(leftY < rightY, 'KL .0046 above .003');
  });

  it('copes with nothing to draw, one point, and many decades', () => {
    for (const rows of [
      [],
      [dense],
      [row({})],
      [row({ kl: 1e-9 }), row({ kl: 3, sparseDensity: 1 })],
    ]) {
      const drawn = evaluationPlot({ model: 'm', settings: [], rows, probes: [] });
      assertWellFormed(drawn);
      assert.ok(!drawn.includes('NaN'));
    }
    assert.match(
      evaluationPlot({ model: 'm', settings: [], rows: [dense], probes: [] }),
      /No sparse measurement/,
    );
  });
});

/** Elements nest, attributes are quoted, nothing is left open. Enough for what the plot uses. */
function assertWellFormed(xml: string): void {
  const open: string[] = [];
  let at = 0;
  for (const tag of xml.matchAll(/<(\/?)([a-z]+)((?:\s+[\w:-]+="[^"<]*")*)(\/?)>/gi)) {
    assert.ok(!/[<>]/.test(xml.slice(at, tag.index)), xml.slice(at, tag.index));
    at = tag.index + tag[0].length;
    if (tag[1] === '/') assert.equal(open.pop(), tag[2]);
    else if (tag[4] !== '/') open.push(tag[2]!);
  }
  assert.deepEqual(open, []);
  assert.equal(xml.slice(at), '\n');
  assert.ok(!/&(?!#\d+;)/.test(xml));
}
