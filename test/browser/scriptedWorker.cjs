// Plays an engine process, so that the views can be tested in every state at once: what is asked
// decides what happens. Sends the events of extension/engine/protocol.ts.
//   "... slowly ..."   a prefill that does not end
//   "... long ..."     a prefill that must be confirmed, unless files were left out
//   "... error ..."    an error
//   "... think ..."    an answer after a thought; with "slowly", a thought that does not end
//   "... old driver ..."  an answer of the CPU, because the GPU's driver is too old
//   "... on a GPU ..."    an answer of a GPU
//   anything else      an answer with citations of every status
const fs = require('node:fs');
const path = require('node:path');

const stepMs = 40;
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const cancelled = new Set();
let proceed = () => {};

process.on('disconnect', () => process.exit(0));
process.on('message', (request) => {
  if (request.type === 'cancel') cancelled.add(request.requestId);
  if (request.type === 'cancel' || request.type === 'proceed') proceed();
  else void answer(request);
});

async function answer(request) {
  const { sessionId, requestId, question, workspace } = request;
  const send = (event) => process.send({ sessionId, requestId, ...event });
  const stopped = () => cancelled.has(requestId);
  const end = (code, message, action) => send({ type: 'error', error: { code, message, action } });
  const phase = async (name, total, unit, steps) => {
    send({ type: 'phase', phase: name });
    for (let step = 1; step <= steps && !stopped(); step++) {
      await wait(stepMs);
      const etaMs = (steps - step) * stepMs;
      send({
        type: 'progress',
        phase: name,
        done: (total * step) / steps,
        total,
        unit,
        perSecond: 612,
        etaMs,
      });
    }
    return stopped();
  };

  if (await phase('load', 98e6, 'bytes', 3)) return end('cancelled', '', '');
  if (/old driver/.test(question)) {
    send({ type: 'place', backend: 'cpu', device: 'CPU', fallback: oldDriver });
  }
  if (await phase('scan', 18, 'files', 1)) return end('cancelled', '', '');
  if (await phase('tokenize', 18, 'files', 2)) return end('cancelled', '', '');
  const files = { full: 14, path: 3, out: 1 };
  send({ type: 'plan', ...tokens, predictedPrefillMs: 842_000, files });
  if (/error/.test(question)) {
    return end(
      'notEnoughMemory',
      'The model needs 14.2 GiB and 9.1 GiB are free.',
      'Choose a smaller model, or set longsight.contextTokens to 8192.',
    );
  }
  if (/long/.test(question) && workspace.budgetTokens === 0) {
    const suggestedBudgetTokens = 4096;
    send({
      type: 'confirm',
      predictedPrefillMs: 842_000,
      computedTokens: 118_000,
      suggestedBudgetTokens,
    });
    await new Promise((resolve) => (proceed = resolve));
    if (stopped()) return end('cancelled', '', '');
  }
  const thinks = /think/.test(question);
  const steps = /slowly/.test(question) && !thinks ? 1500 : 12;
  if (await phase('prefill', tokens.computedTokens, 'tokens', steps))
    return end('cancelled', '', '');
  send({ type: 'phase', phase: 'firstToken' });
  const folder = workspace.folders[0].path;
  const text = answerText(folder);
  const begun = performance.now();
  if (thinks) {
    send({ type: 'phase', phase: 'thinking' });
    const pieces = thoughtText.match(/\s*\S+/g);
    for (let index = 0; index < pieces.length || /slowly/.test(question); index++) {
      await wait(stepMs);
      if (stopped()) return end('cancelled', '', '');
      const elapsedMs = performance.now() - begun;
      send({ type: 'thinking', text: pieces[index] ?? ' …', elapsedMs });
      if (index % 5 === 0) {
        const progress = { phase: 'thinking', done: index, total: 2560, unit: 'tokens' };
        send({ type: 'progress', ...progress, perSecond: 24.6, etaMs: null });
      }
    }
  }
  const thinking = thinks ? { ms: performance.now() - begun, tokens: 61 } : null;
  for (const [index, piece] of text.match(/\s*\S+/g).entries()) {
    await wait(stepMs / 2);
    if (stopped()) return end('cancelled', '', '');
    send({ type: 'token', text: piece });
    if (index === 0) send({ type: 'phase', phase: 'decode' });
  }
  send({ type: 'phase', phase: 'done' });
  send({
    type: 'result',
    result: {
      answer: text,
      thinking: thinks ? thoughtText : '',
      ...citationsOf(text, folder),
      files,
      stopReason: 'end',
      stats: { ...stats(request), ...computedOn(question), thinking },
    },
  });
}

const tokens = { promptTokens: 6312, reusedTokens: 4096, computedTokens: 2216 };

const thoughtText = [
  'The question is about **failed** jobs, so `fail` in src/queue.js [src/queue.js "fail"] decides.\n',
  '1. It counts the attempt.',
  '2. It asks the backoff for a delay.\n',
  'The delay doubles, but I should check where the upper bound stands before I say five minutes.',
].join('\n');

function lineOf(folder, file, number) {
  return fs.readFileSync(path.join(folder, file), 'utf8').split('\n')[number - 1].trim();
}

function answerText(folder) {
  return [
    'read 14 of 18 files\n',
    `A failed job waits longer each time [src/backoff.js "${lineOf(folder, 'src/backoff.js', 4)}"]:\n`,
    '- the delay **doubles** up to five minutes',
    '- after `maxAttempts` it is buried [src/__init__.py "buried = True"]\n',
    '```js',
    'await queue.fail(job.id, error); // the queue decides when it is offered again, and how often',
    '```\n',
    '| attempt | delay |',
    '|---|--:|',
    '| 1 | 1 s |',
    '| 2 | 2 s |\n',
    'Heads are kept in a heap [src/heap.js "return"]. <img src="https://example.org/x.png"> ' +
      '![x](https://example.org/y.png) [run](javascript:alert(1)) [site](https://example.org/)',
  ].join('\n');
}

function citationsOf(text, folder) {
  const of = (file, quote, status, line = 0) => ({
    path: file,
    quote,
    startLine: line,
    endLine: line,
    status,
    absolutePath: status === 'invented' ? '' : path.join(folder, file),
  });
  return {
    citations: [
      of('src/backoff.js', lineOf(folder, 'src/backoff.js', 4), 'verified', 4),
      of('src/__init__.py', 'buried = True', 'invented'),
      of('src/heap.js', 'return', 'ambiguous'),
    ],
    citationSpans: [...text.matchAll(/\[src\/\S+ "[^"\n]*"\]/g)].map(({ index, 0: all }) => ({
      start: index,
      end: index + all.length,
    })),
  };
}

const oldDriver = 'The NVIDIA driver is 535.183.01; the GPU needs 580 or newer.';

/** What the statistics say of the device. */
function computedOn(question) {
  if (/old driver/.test(question)) return { fallback: oldDriver };
  if (!/on a GPU/.test(question)) return {};
  return {
    backend: 'cuda',
    device: 'NVIDIA GeForce RTX 4090',
    speculation: { draftedTokens: 120, acceptedTokens: 82 },
    times: {
      linearMs: 212,
      expandMs: 18.4,
      stage1Ms: 9.2,
      stage2Ms: 7.7,
      stage3Ms: 96,
      auditMs: 0.6,
      restMs: 31,
    },
    memory: {
      weightBytes: 96_500_000,
      kvBytes: 188_700_000,
      scratchBytes: 435_600_000,
      fixedBytes: 520_000_000,
    },
  };
}

function stats({ params, model }) {
  // Like a small model's: early layers look far, some heads hardly.
  const heads = (layer) =>
    Array.from({ length: 9 }, (_, head) =>
      layer === 0 && head === 4
        ? null
        : 0.04 + 0.5 * Math.abs(Math.sin(layer * 1.7 + head * 2.3)) ** 3,
    );
  const mean = (values) => values.reduce((sum, value) => sum + (value ?? 0), 0) / values.length;
  const layers = Array.from({ length: 30 }, (_, layer) => heads(layer)).map((all) => ({
    density: mean(all),
    heads: all,
  }));
  return {
    model: path.basename(model.path, '.gguf'),
    backend: 'cpu',
    device: 'CPU',
    fallback: '',
    speculation: null,
    times: null,
    params,
    kvCache: model.kvCache,
    ...tokens,
    prefillTokensPerSecond: 612,
    decodeTokensPerSecond: 38.2,
    attention: {
      density: 0.41,
      sparseDensity: 0.163,
      coverageMean: 0.981,
      coverageP5: 0.934,
      layers,
    },
    memory: {
      weightBytes: 96_500_000,
      kvBytes: 188_700_000,
      scratchBytes: 35_600_000,
      fixedBytes: 0,
    },
  };
}
