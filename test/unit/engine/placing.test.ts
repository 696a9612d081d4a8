/** Where a model computes, through requests of the engine process. */
import assert from 'node:assert/strict';
import path from 'node:path';
import type { CudaDevice } from '../../../extension/engine/addon';
import type { CudaState } from '../../../extension/engine/cudaProbe';
import { Jobs } from '../../../extension/engine/jobs';
import { defaultParams } from '../../../extension/engine/params';
import type {
  DoctorResult,
  Event,
  JobRequest,
  ModelRequest,
  PlaceEvent,
  ResultEvent,
} from '../../../extension/engine/protocol';
import { folderWith, removeFolders } from '../workspace/folders';
import { FakeAddon, fakeCuda } from './fakeAddon';

const trained = 131_072;
const device = (index: number, name: string, freeGB: number): CudaDevice => ({
  index,
  name,
  computeCapability: '9.0',
  totalBytes: 80e9,
  freeBytes: freeGB * 1e9,
});
const coded = (code: string, message: string) =>
  Object.assign(new Error(message), { code, action: 'Do that.' });

describe('engine/placing', () => {
  let fake: FakeAddon;
  let events: Event[];
  let jobs: Jobs;
  let modelPath: string;
  afterEach(removeFolders);

  function machine(state: Partial<CudaState>): void {
    fake = new FakeAddon();
    fake.settings.spec = { contextTokens: trained };
    events = [];
    modelPath = path.join(folderWith({ 'model.gguf': 'x' }), 'model.gguf');
    jobs = new Jobs({
      addon: () => fake.addon,
      cuda: fakeCuda(state),
      send: (event) => events.push(event),
      now: () => performance.now(),
      version: '1',
    });
  }

  const request = (over: Partial<ModelRequest> = {}): ModelRequest => ({
    path: modelPath,
    backend: 'auto',
    device: -1,
    threads: 1,
    contextTokens: 0,
    kvCache: 'bf16',
    ...over,
  });

  async function handled(body: object): Promise<Event> {
    events.length = 0;
    jobs.handle({ sessionId: 's', requestId: 'r', ...body } as JobRequest);
    for (;;) {
      const last = events.at(-1);
      if (last?.type === 'result' || last?.type === 'error') return last;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  const ask = (model: ModelRequest) =>
    handled({
      type: 'ask',
      model,
      params: { ...defaultParams },
      workspace: {
        folders: [{ name: 'w', path: folderWith({ 'a.txt': 'text' }) }],
        unsaved: {},
        budgetTokens: 0,
        strict: false,
      },
      chat: [],
      question: 'Why?',
      answerTokens: 8,
      sampling: {
        temperature: 0,
        topP: 1,
        topK: 0,
        minP: 0,
        repetitionPenalty: 1,
        logitBias: [],
        seed: 0,
        stop: [],
      },
      thinking: false,
      savedSession: '',
      confirmAbovePrefillMs: 0,
    });

  /** Where a question was answered, and with which context. */
  async function placed(model: ModelRequest) {
    const last = await ask(model);
    assert.equal(last.type, 'result', JSON.stringify(last));
    const {
      backend,
      device: name,
      fallback,
    } = events.find((event): event is PlaceEvent => event.type === 'place')!;
    const { stats } = last.result as unknown as {
      stats: Record<string, unknown>;
    };
    assert.deepEqual([stats.backend, stats.device, stats.fallback], [backend, name, fallback]);
    const session = [...fake.options].reverse().find((options) => 'ropeBaseScale' in options)!;
    return { backend, name, fallback, index: session.device, tokens: session.contextTokens };
  }

  async function refused(model: ModelRequest) {
    const last = await ask(model);
    assert.equal(last.type, 'error');
    return last.error;
  }

  it('takes the GPU with the most free memory, or the one that is named', async () => {
    machine({ usable: [device(0, 'A', 10), device(1, 'B', 20)] });
    fake.settings.gpus = [trained, trained];
    const onB = { backend: 'cuda', name: 'B', fallback: '', index: 1, tokens: trained };
    assert.deepEqual(await placed(request()), onB);
    assert.deepEqual(await placed(request({ backend: 'cuda' })), onB);
    const onA = { ...onB, name: 'A', index: 0 };
    assert.deepEqual(await placed(request({ device: 0 })), onA);
    assert.equal((await placed(request({ backend: 'cpu' }))).name, 'CPU');
  });

  it('takes the GPU with the largest context when none holds all', async () => {
    machine({ usable: [device(0, 'A', 10), device(1, 'B', 20)] });
    fake.settings.gpus = [90_000, 40_000];
    const { name, tokens } = await placed(request());
    assert.deepEqual([name, tokens], ['A', 90_000]);
    fake.settings.gpus = [90_000, trained];
    assert.equal((await placed(request({ kvCache: 'q8' }))).name, 'B');
  });

  it('without a GPU takes the CPU quietly, or says why there is none', async () => {
    machine({});
    const onCpu = { backend: 'cpu', name: 'CPU', fallback: '', index: 0, tokens: trained };
    assert.deepEqual(await placed(request()), onCpu);
    const error = await refused(request({ backend: 'cuda' }));
    assert.deepEqual(error, {
      code: 'deviceUnavailable',
      message: 'No NVIDIA GPU was found.',
      action: 'Use the backend cpu or auto.',
    });
  });

  it('tells of what a person can fix, and only of that', async () => {
    const message = 'The NVIDIA driver is 535.1; the GPU needs 580 or newer.';
    machine({ problem: { message, action: 'Update the driver.', fixable: true } });
    assert.equal((await placed(request())).fallback, message);
    assert.equal((await refused(request({ backend: 'cuda' }))).action, 'Update the driver.');
    machine({ problem: { message: 'Too old.', action: '', fixable: false } });
    assert.equal((await placed(request())).fallback, '');
  });

  it('leaves a GPU that is too small for the context, with the numbers', async () => {
    machine({ usable: [device(0, 'RTX', 6)] });
    fake.settings.gpus = [8000];
    const { backend, fallback } = await placed(request());
    assert.equal(backend, 'cpu');
    assert.match(
      fallback,
      /^fake with a context of 131072 tokens needs .* on RTX .*; .* are available, enough for 8000 tokens\.$/,
    );
    const error = await refused(request({ backend: 'cuda', contextTokens: 9000 }));
    assert.equal(error.code, 'notEnoughMemory');
    assert.match(error.action, /^Use a context of 8000 tokens or less, or keep the KV cache as q8/);
    // What is asked for by number is not made smaller.
    assert.equal((await placed(request({ contextTokens: 9000 }))).backend, 'cpu');
    assert.equal((await placed(request({ contextTokens: 8000 }))).backend, 'cuda');
  });

  it('moves to the GPU once its memory is free, and stays there', async () => {
    machine({ usable: [device(0, 'RTX', 6)] });
    fake.settings.gpus = [8000];
    assert.equal((await placed(request())).backend, 'cpu');
    assert.equal((await placed(request())).backend, 'cpu');
    assert.equal(fake.calls.filter((call) => call === 'createSession').length, 1);
    fake.settings.gpus = [trained];
    assert.equal((await placed(request())).backend, 'cuda');
    fake.settings.gpus = [0];
    assert.equal((await placed(request())).backend, 'cuda');
    assert.equal(fake.calls.filter((call) => call === 'createSession').length, 2);
  });

  it('goes on with the CPU when the GPU refuses the model or the session', async () => {
    machine({ usable: [device(0, 'RTX', 6)] });
    fake.settings.gpus = [coded('unsupportedTensorType', 'IQ2_XS does not run on a GPU.')];
    assert.equal((await placed(request())).fallback, 'IQ2_XS does not run on a GPU.');
    assert.equal((await refused(request({ backend: 'cuda' }))).code, 'unsupportedTensorType');
    fake.settings.gpus = [trained];
    fake.settings.gpuSessionError = coded('notEnoughMemory', 'Others were faster.');
    const { backend, fallback } = await placed(request({ threads: 2 }));
    assert.deepEqual([backend, fallback], ['cpu', 'Others were faster.']);
    assert.equal((await refused(request({ backend: 'cuda', threads: 2 }))).code, 'notEnoughMemory');
    fake.settings.gpuSessionError = coded('cancelled', 'Stopped.');
    assert.equal((await refused(request({ threads: 3 }))).code, 'cancelled');
  });

  it('names the GPUs that there are for one that is not', async () => {
    machine({ usable: [device(0, 'A', 10), device(2, 'B', 20)] });
    const error = await refused(request({ backend: 'cuda', device: 1 }));
    assert.equal(error.code, 'deviceUnavailable');
    assert.equal(error.message, 'There is no usable GPU 1; usable: 0 (A), 2 (B).');
    assert.match((await placed(request({ device: 1 }))).fallback, /no usable GPU 1/);
  });

  it('shows in doctor each GPU, its memory for the model, and what is wrong', async () => {
    const doctor = async (model: ModelRequest | null) => {
      const last = await handled({ type: 'doctor', model, params: { ...defaultParams } });
      return (last as ResultEvent).result as DoctorResult;
    };
    machine({
      usable: [device(0, 'A', 10)],
      refused: [{ index: 1, name: 'GTX 1080', reason: 'compute capability 6.1' }],
    });
    fake.settings.gpus = [trained];
    const found = await doctor(request());
    assert.deepEqual(
      found.devices.map(({ name, usable }) => [name, usable]),
      [
        ['cpu', true],
        ['cuda:0', true],
        ['cuda:1', false],
      ],
    );
    assert.equal(found.devices[1]!.reason, 'A, compute capability 9.0, 9.3 of 74.5 GiB free');
    assert.deepEqual(
      found.memory.map((memory) => memory.device),
      ['cuda:0', 'cpu'],
    );
    assert.deepEqual(found.problems, []);
    const message = 'The NVIDIA driver is 535.1; the GPU needs 580 or newer.';
    machine({ problem: { message, action: 'Update the driver.', fixable: true } });
    const old = await doctor(null);
    assert.deepEqual(old.devices[1], { name: 'cuda', usable: false, reason: message });
    assert.deepEqual(old.problems, [
      { code: 'deviceUnavailable', message, action: 'Update the driver.' },
    ]);
    machine({});
    assert.deepEqual((await doctor(request())).problems, []);
    assert.equal((await doctor(request({ backend: 'cuda' }))).problems.length, 1);
    assert.deepEqual((await doctor(request({ backend: 'cpu' }))).problems, []);
  });
});
