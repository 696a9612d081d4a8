// `npm run bench:cpu`: Longsight beside libllama. Same libraries, file, text and machine, in turn.
//   --model FILE       a GGUF file (default: the demo model)
//   --synthetic        0.5 billion random weights, 16/8 heads of 128 dimensions, instead
//   --tokens 2048,8192 lengths of the prefill
//   --runs 3           of which medians are taken
//   --threads N        default: one for each physical core
//   --text FILE        default: the Python standard library, else the sample workspace
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

async function writeSynthetic(vocabularyFrom) {
  const file = inRoot('build/bench/synthetic-0.5B-Q8_0.gguf');
  if (existsSync(file)) return file;
  mkdirSync(path.dirname(file), { recursive: true });
  await step('Writing random weights', program, [vocabularyFrom, `${file}.part`]);
  renameSync(`${file}.part`, file);
  return file;
}

/** The measurements of cpu_bench.cpp: quantity -> size -> name -> values. */
async function measure(args, text) {
  const child = spawn(program, args.map(String), { stdio: ['pipe', 'pipe', 'inherit'] });
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

function speedTable({ prefill, decode }) {
  const prefills = Object.entries(prefill).map(([tokens, row]) => {
    const [libllama, dense, peak] = [row.libllama, row.dense, row.peak].map(median);
    const seconds = [libllama, dense, peak].map((value) => `${value.toFixed(2)} s`);
    return [
      `prefill ${whole(tokens)}`,
      ...seconds,
      ratio(libllama / dense),
      ratio(libllama / peak),
    ];
  });
  const decodes = Object.entries(decode).map(([depth, row]) => {
    const [libllama, own] = [row.libllama, row.longsight].map(median);
    const speeds = [libllama, own].map((value) => `${value.toFixed(1)} tok/s`);
    return [`decode at ${whole(depth)}`, ...speeds, '', ratio(own / libllama), ''];
  });
  const head = ['', 'libllama', 'dense', 'peak', 'dense / libllama', 'peak / libllama'];
  return table(head, [...prefills, ...decodes]);
}

function rooflineTable({ prefill, gflop, density }, peak) {
  const rows = Object.entries(prefill).flatMap(([tokens, row]) =>
    ['libllama', 'dense', 'peak'].map((name) => {
      const linear = gflop[tokens].linear[0];
      const attention = gflop[tokens].attention[0] * (density[tokens][name]?.[0] ?? 1);
      const speed = (linear + attention) / median(row[name]);
      const share = peak ? `${whole((100 * speed) / peak)} %` : 'unknown';
      return [`${name} ${whole(tokens)}`, ...[linear, attention, speed].map(whole), share];
    }),
  );
  return table(['prefill', 'linear GFLOP', 'attention GFLOP', 'GFLOP/s', 'share of peak'], rows);
}

function report({ measured, model, text, runs, load }) {
  const [threads, kernels] = Object.entries(measured.threads)[0];
  const [scored, score] = Object.entries(measured.score)[0];
  const settings = Object.entries(measured.settings)
    .flatMap(([ubatch, row]) => Object.entries(row).map(([cache, [s]]) => ({ ubatch, cache, s })))
    .sort((a, b) => a.s - b.s)[0];
  const [bf16, f32] = ['bf16', 'f32'].map((name) =>
    Math.max(0, ...(measured.peak?.[0][name] ?? [])),
  );
  const density = Object.values(measured.density).at(-1).peak[0];
  const peaks = [bf16, f32].map((value) => (value ? `${whole(value)} GFLOP/s` : 'not measured'));
  return `${new Date().toISOString().slice(0, 10)}, ${cpus()[0].model}, threads: ${threads}, load average ${load.toFixed(2)} at the start
${path.basename(model)}, ${text}; medians of ${runs}
Kernels: ${Object.keys(kernels).join(', ')}; libllama with flash attention, n_ubatch ${settings.ubatch}, ${settings.cache} cache

${speedTable(measured)}

Peaks of all threads: bf16 dot product ${peaks[0]}, f32 multiply-add ${peaks[1]}

${rooflineTable(measured, bf16 || f32)}

Last ${whole(scored)} tokens of the longest prefill, peak against dense: KL ${score.kl[0].toFixed(5)}, same most likely token ${(100 * score.top1[0]).toFixed(1)} %, density ${density.toFixed(3)}`;
}

function parse(options) {
  try {
    return parseArgs({ options });
  } catch (error) {
    throw new Problem(error.message, 'The options are listed at the top of test/bench/cpu.mjs.');
  }
}

main(async () => {
  const text = (fallback) => ({ type: 'string', default: fallback });
  const { values } = parse({
    model: text(),
    text: text(),
    synthetic: { type: 'boolean', default: false },
    tokens: text('2048,8192'),
    runs: text('3'),
    threads: text('0'),
  });
  const tokens = values.tokens.split(',').map(Number);
  const [runs, threads] = [values.runs, values.threads].map(Number);
  const inRange = (value, least) => Number.isInteger(value) && value >= least;
  if (!tokens.every((each) => inRange(each, 64)) || !inRange(runs, 1) || !inRange(threads, 0)) {
    throw new Problem(
      `--tokens ${values.tokens} --runs ${values.runs} --threads ${values.threads} is not possible.`,
      'Whole numbers: tokens from 64, separated by commas; runs from 1; threads from 0.',
    );
  }
  const load = loadavg()[0];
  await build();
  await step('Building the bench', 'cmake', ['--build', inRoot('build'), '--target', 'cpu_bench']);
  const given = values.model ?? process.env.LONGSIGHT_TEST_MODEL ?? (await fetchModel());
  const model = values.synthetic ? await writeSynthetic(given) : given;
  const most = Math.max(...tokens);
  const depths = [4096, 8192].filter((depth) => depth <= most);
  const source = readText(values.text, 8 * most);
  const args = [model, threads, runs, tokens, depths.length > 0 ? depths : most];
  const measured = await measure(args, source.text);
  console.log(report({ measured, model, text: source.name, runs, load }));
  if (load > quietLoad)
    say(
      `\nThe load average was ${load.toFixed(2)} at the start, above ${quietLoad}: other programs ran, so these figures are not to be trusted.`,
    );
});
