// `npm run bench:cpu`: Longsight beside libllama. Same libraries, file, text and machine, in turn.
//   --only PART,...       of the parts model, avx2 (the model with AVX2 forced), q8 (the model with q8
//                         KV caches, both of them) and synthetic (0.5 billion random weights, 16/8
//                         heads of 128 dimensions); default: all
//   --model FILE          a GGUF file (default: the demo model)
//   --tokens 2048,8192    lengths of the prefill
//   --runs 5              of which medians are taken
//   --synthetic-runs 1    the same for the synthetic model, whose runs take minutes
//   --synthetic-type Q8_0 of its weights, or Q4_1
//   --synthetic-density .16  of the column lists that are drawn for it in place of those that
//                         `peak` finds, since random weights have no structure; 0 = none are
//   --threads N           default: one for each physical core
//   --text FILE           default: the Python standard library, else the sample workspace
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync } from 'node:fs';
import { cpus, loadavg } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { build } from '../../scripts/build.mjs';
import { inRoot } from '../../scripts/lib/paths.mjs';
import { main, output, Problem, say, step } from '../../scripts/lib/terminal.mjs';
import { fetchModel } from '../../scripts/model.mjs';

const quietLoad = 0.5;
const program = inRoot('build/native/cpu_bench');

/** What is read, named for the report; at least `bytes` of it where there is as much. */
function readText(file, bytes) {
  if (file) return { name: file, text: readFileSync(file) };
  const python = output('python3', ['-c', 'import sysconfig; print(sysconfig.get_path("stdlib"))']);
  const folder = python ?? inRoot('test/fixtures/sample-workspace');
  const files = readdirSync(folder, { recursive: !python, withFileTypes: true })
    .filter((entry) => entry.isFile() && (!python || entry.name.endsWith('.py')))
    .map((entry) => path.join(entry.parentPath, entry.name))
    .sort();
  let text = '';
  for (const each of files) if (text.length < bytes) text += readFileSync(each, 'utf8');
  return { name: python ? `Python standard library, ${python}/*.py` : 'sample workspace', text };
}

async function writeSynthetic(vocabularyFrom, type) {
  const file = inRoot(`build/bench/synthetic-0.5B-${type}.gguf`);
  if (existsSync(file)) return file;
  mkdirSync(path.dirname(file), { recursive: true });
  await step('Writing random weights', program, [vocabularyFrom, `${file}.part`, type]);
  renameSync(`${file}.part`, file);
  return file;
}

/** The measurements of cpu_bench.cpp: quantity -> size -> name -> values. */
async function measure(args, text, env = {}) {
  const child = spawn(program, args.map(String), {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, ...env },
  });
  const ended = new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  child.stdin.on('error', () => {}); // It ended early: its status tells.
  child.stdin.end(text);
  const measured = {};
  for await (const line of createInterface({ input: child.stdout })) {
    say(line);
    const [quantity, size, name, value] = line.split(' ');
    (((measured[quantity] ??= {})[size] ??= {})[name] ??= []).push(Number(value));
  }
  const status = await ended;
  if (status !== 0) throw new Problem(`The measurement failed (${status}).`);
  return measured;
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

function table(head, rows) {
  const line = (cells) => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map((_, i) => (i ? '---:' : '---'))), ...rows.map(line)].join('\n');
}

const whole = (value) => Math.round(Number(value)).toLocaleString('en-US');
const ratio = (value) => `${value.toFixed(2)}x`;

/** Rows of all parts; libllama is the same for a part with a forced instruction set. */
function speedTable(parts) {
  const rows = parts.flatMap(({ title, measured, reference, density }) => {
    const { prefill, decode = {}, sparse = {} } = measured;
    const seconds = (values) => (values ? `${median(values).toFixed(2)} s` : '');
    const times = (libllama, own) => (libllama && own ? ratio(median(libllama) / median(own)) : '');
    const prefills = Object.entries(prefill).map(([tokens, { libllama, dense, peak }]) => {
      const theirs = libllama ?? reference?.prefill[tokens]?.libllama;
      const name = `${title}: prefill ${whole(tokens)}`;
      const all = [theirs, dense, peak].map(seconds);
      const drawn = density && sparse[tokens]?.peak ? ' (drawn lists)' : '';
      return [name + drawn, ...all, times(theirs, dense), times(theirs, peak)];
    });
    const decodes = Object.entries(decode).map(([depth, row]) => {
      const [libllama, own] = [row.libllama, row.longsight].map(median);
      const speeds = [libllama, own].map((value) => `${value.toFixed(1)} tok/s`);
      return [`${title}: decode at ${whole(depth)}`, ...speeds, '', ratio(own / libllama), ''];
    });
    return [...prefills, ...decodes];
  });
  return table(['', 'libllama', 'dense', 'peak', 'dense / libllama', 'peak / libllama'], rows);
}

function rooflineTable(parts) {
  const rows = parts.flatMap(
    ({ title, measured: { prefill, gflop, density, peak }, peakNames }) => {
      const most = bestPeak(peak, peakNames);
      return Object.entries(prefill).flatMap(([tokens, row]) =>
        ['libllama', 'dense', 'peak'].flatMap((name) => {
          if (!row[name]) return [];
          const linear = gflop[tokens].linear[0];
          const attention = gflop[tokens].attention[0] * (density[tokens]?.[name]?.[0] ?? 1);
          const speed = (linear + attention) / median(row[name]);
          const share = most ? `${whole((100 * speed) / most)} %` : 'unknown';
          const figures = [linear, attention, speed].map(whole);
          return [[`${title}: ${name} ${whole(tokens)}`, ...figures, share]];
        }),
      );
    },
  );
  return table(['prefill', 'linear GFLOP', 'attention GFLOP', 'GFLOP/s', 'share of peak'], rows);
}

/** The first of these peaks that the machine has, as the best of its bursts. */
function bestPeak(peak, names) {
  const name = names.find((each) => peak?.[0]?.[each]);
  return name === undefined ? 0 : Math.max(...peak[0][name]);
}

function settingsText({ settings }) {
  if (!settings) return '';
  const [best] = Object.entries(settings)
    .flatMap(([ubatch, row]) => Object.entries(row).map(([cache, [s]]) => ({ ubatch, cache, s })))
    .sort((a, b) => a.s - b.s);
  return `; libllama with flash attention, n_ubatch ${best.ubatch}, ${best.cache} cache`;
}

function report({ parts, text, threads, load, seconds }) {
  const peakText = ['bf16', 'f32', 'avx2']
    .map((name) => [
      name,
      Math.max(...parts.map(({ measured }) => bestPeak(measured.peak, [name]))),
    ])
    .filter(([, value]) => value > 0)
    .map(([name, value]) => `${peakNames[name]} ${whole(value)} GFLOP/s`);
  const kernels = parts.map(({ title, measured, model, runs }) => {
    const names = Object.keys(Object.values(measured.threads)[0]).join(', ');
    const file = path.basename(model);
    return `${title}: ${file}, medians of ${runs}, kernels ${names}${settingsText(measured)}`;
  });
  const scores = parts.flatMap(({ title, measured: { score, density } }) => {
    if (!score) return [];
    const [scored, { kl, top1 }] = Object.entries(score)[0];
    const share = Object.values(density).at(-1).peak[0];
    return [
      `${title}: last ${whole(scored)} tokens of the longest prefill, peak against dense: ` +
        `KL ${kl[0].toFixed(5)}, same most likely token ${(100 * top1[0]).toFixed(1)} %, ` +
        `density ${share.toFixed(3)}`,
    ];
  });
  const drawn = parts.flatMap(({ title, density, measured: { sparse = {} } }) =>
    Object.entries(sparse).flatMap(([tokens, { peak }]) =>
      density && peak
        ? [
            `${title}: random weights have no structure to find. At ${whole(tokens)} tokens \`peak\` sampled and ` +
              `filtered as ever, then its lists were replaced by drawn ones: density of the sparse rows ${peak[0].toFixed(3)}`,
          ]
        : [],
    ),
  );
  return `${new Date().toISOString().slice(0, 10)}, ${cpus()[0].model}, threads: ${threads}, load average ${load.toFixed(2)} at the start, ${(seconds / 60).toFixed(1)} min
Text: ${text}
${kernels.join('\n')}

${speedTable(parts)}
${drawn.map((line) => `\n${line}`).join('')}

Peaks of all threads: ${peakText.join(', ') || 'not measured'}

${rooflineTable(parts)}
${scores.map((score) => `\n${score}`).join('')}`;
}

const peakNames = {
  bf16: 'bf16 dot product',
  f32: 'f32 multiply-add',
  avx2: 'f32 multiply-add with AVX2',
};

function parse(options) {
  try {
    return parseArgs({ options });
  } catch (error) {
    throw new Problem(error.message, 'The options are listed at the top of test/bench/cpu.mjs.');
  }
}

const allParts = ['model', 'avx2', 'q8', 'synthetic'];

/** What was asked for, checked. */
function options() {
  const text = (fallback) => ({ type: 'string', default: fallback });
  const { values } = parse({
    only: text(allParts.join(',')),
    model: text(),
    text: text(),
    tokens: text('2048,8192'),
    runs: text('5'),
    'synthetic-runs': text('1'),
    'synthetic-type': text('Q8_0'),
    'synthetic-density': text('.16'),
    threads: text('0'),
  });
  const only = values.only.split(',');
  const unknown = only.filter((part) => !allParts.includes(part));
  if (unknown.length > 0) {
    throw new Problem(`There is no part ${unknown.join(', ')}.`, `Parts: ${allParts.join(', ')}.`);
  }
  const syntheticType = values['synthetic-type'];
  if (!['Q8_0', 'Q4_1'].includes(syntheticType))
    throw new Problem(`--synthetic-type ${syntheticType} is not possible.`, 'Q8_0 or Q4_1.');
  const syntheticDensity = Number(values['synthetic-density']);
  if (!(syntheticDensity >= 0 && syntheticDensity <= 1))
    throw new Problem(
      `--synthetic-density ${values['synthetic-density']} is not possible.`,
      'A number from 0 to 1; 0 = lists as they are found.',
    );
  const tokens = values.tokens.split(',').map(Number);
  const [runs, syntheticRuns, threads] = [
    values.runs,
    values['synthetic-runs'],
    values.threads,
  ].map(Number);
  const inRange = (value, least) => Number.isInteger(value) && value >= least;
  const counts = inRange(runs, 1) && inRange(syntheticRuns, 1) && inRange(threads, 0);
  if (!tokens.every((each) => inRange(each, 64)) || !counts) {
    throw new Problem(
      `--tokens ${values.tokens} --runs ${values.runs} --synthetic-runs ${values['synthetic-runs']} --threads ${values.threads} is not possible.`,
      'Whole numbers: tokens from 64, separated by commas; runs from 1; threads from 0.',
    );
  }
  const { model, text: textFile } = values;
  return {
    ...{ only, tokens, runs, syntheticRuns, syntheticType, syntheticDensity, threads, model },
    text: textFile,
  };
}

function hasAvx2() {
  return (
    existsSync('/proc/cpuinfo') && /^flags\b.*\bavx2\b/m.test(readFileSync('/proc/cpuinfo', 'utf8'))
  );
}

main(async () => {
  const { only, tokens, runs, syntheticRuns, syntheticType, syntheticDensity, threads, ...given } =
    options();
  const load = loadavg()[0];
  await build();
  await step('Building the bench', 'cmake', ['--build', inRoot('build'), '--target', 'cpu_bench']);
  const model = given.model ?? process.env.LONGSIGHT_TEST_MODEL ?? (await fetchModel());
  const most = Math.max(...tokens);
  const depths = [4096, 8192].filter((depth) => depth <= most);
  const source = readText(given.text, 8 * most);
  const start = performance.now();
  const parts = [];
  const add = async (part, { counts = tokens, at = '', what, env }) => {
    say(`\n── ${part.title}`);
    const args = [part.model, threads, part.runs, counts, at, what, part.density ?? 0];
    const measured = await measure(args, source.text, env);
    parts.push({ peakNames: ['bf16', 'f32', 'avx2'], ...part, measured });
  };
  if (only.includes('model')) {
    const title = path.basename(model).split(/[-.]/)[0];
    const at = depths.length > 0 ? depths : most;
    await add({ title, model, runs }, { at, what: 'libllama,dense,peak,score' });
  }
  if (only.includes('avx2') && hasAvx2()) {
    const reference = parts[0]?.measured;
    const what = reference ? 'peak' : 'libllama,peak';
    const part = { title: 'AVX2 forced', model, runs, reference, peakNames: ['avx2'] };
    await add(part, { counts: [most], what, env: { LONGSIGHT_CPU: 'avx2' } });
  }
  if (only.includes('q8')) {
    const part = { title: 'q8 KV cache', model, runs };
    await add(part, { counts: [most], at: depths, what: 'libllama,dense,q8' });
  }
  if (only.includes('synthetic')) {
    const part = {
      title: `Synthetic 0.5B ${syntheticType}`,
      density: syntheticDensity,
      model: await writeSynthetic(model, syntheticType),
      runs: syntheticRuns,
    };
    await add(part, { at: depths, what: 'libllama,dense,peak' });
  }
  if (parts.length === 0) throw new Problem('This processor has no AVX2.', 'Measure another part.');
  const seconds = (performance.now() - start) / 1000;
  const [used] = Object.keys(parts[0].measured.threads);
  console.log(report({ parts, text: source.name, threads: used, load, seconds }));
  if (load > quietLoad)
    say(
      `\nThe load average was ${load.toFixed(2)} at the start, above ${quietLoad}: other programs ran, so these figures are not to be trusted.`,
    );
});
