import assert from 'node:assert/strict';
import { setTimeout as wait } from 'node:timers/promises';
import { Engine } from '../../../extension/engine/client';
import type { Event, PhaseTimes } from '../../../extension/engine/protocol';
import { script, ScriptedChild } from './scriptedChild';

describe('engine/client', function () {
  this.timeout(20_000);
  let child: ScriptedChild;
  let engine: Engine;
  let log: string[];

  beforeEach(() => {
    child = new ScriptedChild();
    log = [];
    engine = new Engine({ workerPath: child.workerPath, log: (_level, text) => log.push(text) });
  });
  afterEach(async () => {
    await engine.dispose();
    child.dispose();
  });

  const run = async (text: string) => {
    const events: Event[] = [];
    const answer = await engine.ask(script(text), { onEvent: (event) => events.push(event) })
      .result;
    return { answer, events };
  };
  const total = (phases: PhaseTimes) => Object.values(phases).reduce((sum, ms) => sum + ms, 0);
  const alive = (pid: number) => {
    try {
      process.kill(pid, 0);
      return true;
    } catch {
      return false;
    }
  };

  it('starts no process before the first request', () => {
    assert.equal(engine.pid, undefined);
  });

  it('measures the time to the first token by phases that sum to it', async () => {
    const started = performance.now();
    let firstAt = 0;
    const text =
      'phase=scan wait=30 phase=tokenize wait=20 phase=prefill wait=120 phase=firstToken wait=40 token=a phase=decode wait=150 token=b';
    const answer = await engine.ask(script(text), {
      onEvent: (event) => {
        if (event.type === 'token' && firstAt === 0) firstAt = performance.now();
      },
    }).result;
    const { ttftMs, phases } = answer.stats;
    assert.ok(Math.abs(ttftMs - (firstAt - started)) < 15, `${ttftMs} vs ${firstAt - started}`);
    assert.ok(Math.abs(total(phases) - ttftMs) < 1e-6);
    assert.ok(phases.prefillMs >= 110 && phases.firstTokenMs >= 35, JSON.stringify(phases));
  });

  it('reports phases in order, queue and load first', async () => {
    const { events } = await run('phase=scan phase=prefill token=a phase=decode');
    const phases = events.flatMap((event) => (event.type === 'phase' ? [event.phase] : []));
    assert.deepEqual(phases, ['queue', 'load', 'scan', 'prefill', 'decode', 'done']);
    assert.equal(events.at(-1)!.type, 'result');
    assert.equal(new Set(events.map((event) => event.requestId)).size, 1);
  });

  it('calls no listener before the caller has its handle', async () => {
    let returned = false;
    let early = false;
    const job = engine.ask(script('token=a'), { onEvent: () => (early ||= !returned) });
    returned = true;
    await job.result;
    assert.equal(early, false);
  });

  it('subtracts the time in which a person is asked', async () => {
    const job = engine.ask(script('phase=tokenize confirm phase=prefill wait=30 token=a'), {
      onEvent: (event) => {
        if (event.type === 'confirm') setTimeout(() => job.proceed(), 400);
      },
    });
    const { stats } = await job.result;
    assert.ok(stats.phases.tokenizeMs < 200, JSON.stringify(stats.phases));
    assert.ok(stats.phases.prefillMs >= 25);
  });

  it('lets a second request wait, visibly', async () => {
    const seen: (number | undefined)[] = [];
    const first = engine.ask(script('phase=scan wait=100 token=a'));
    const second = engine.ask(script('phase=scan wait=50 token=b'));
    const third = engine.ask(script('token=c'), {
      onEvent: (event) => {
        if (event.type === 'phase' && event.phase === 'queue') seen.push(event.ahead);
      },
    });
    const answers = await Promise.all([first.result, second.result, third.result]);
    assert.deepEqual(seen, [2, 1, 0]);
    assert.equal(new Set(answers.map(({ answer }) => answer)).size, 1);
    assert.ok(answers[2].stats.phases.queueMs >= 140);
    assert.ok(answers[2].stats.phases.loadMs < 40);
  });

  it('stops a save for a question, whether it runs or waits', async () => {
    const place = { file: '/cache/a.session', mostFolderBytes: 0 };
    const first = engine.ask(script('wait=60 token=a'));
    const waiting = engine.save(place);
    await first.result;
    await wait(30);
    const started = performance.now();
    const second = engine.ask(script('token=b'));
    await assert.rejects(waiting.result, { code: 'cancelled' });
    const third = engine.save(place);
    const fourth = engine.ask(script('token=c'));
    await assert.rejects(third.result, { code: 'cancelled' });
    assert.ok((await second.result).answer && (await fourth.result).answer);
    assert.ok(performance.now() - started < 2000);
    assert.deepEqual(await engine.save(place).result, { saved: true });
  });

  it('cancels a request that waits without disturbing the one that runs', async () => {
    const first = engine.ask(script('phase=scan wait=150 token=a'));
    const second = engine.ask(script('token=b'));
    const third = engine.ask(script('token=c'));
    await wait(50);
    second.cancel();
    await assert.rejects(second.result, { code: 'cancelled' });
    assert.ok((await first.result).answer);
    assert.ok((await third.result).answer);
  });

  it('cancels the running request through its signal', async () => {
    const abort = new AbortController();
    const job = engine.ask(script('phase=prefill wait=100 token=a wait=100 token=b'), {
      signal: abort.signal,
    });
    setTimeout(() => abort.abort(), 120);
    await assert.rejects(job.result, { code: 'cancelled' });
    assert.ok((await run('token=a')).answer);
  });

  it('rejects at once when the signal has fired before', async () => {
    const job = engine.ask(script('token=a'), { signal: AbortSignal.abort() });
    await assert.rejects(job.result, { code: 'cancelled' });
  });

  it('hands typed errors on', async () => {
    await assert.rejects(engine.ask(script('error=overBudget')).result, {
      name: 'EngineError',
      code: 'overBudget',
      message: 'm',
      action: 'a',
    });
  });

  it('survives kill -9 of the process: typed error, new process for those that wait', async () => {
    const first = (await run('token=a')).answer.answer;
    const doomed = engine.ask(script('phase=prefill kill=SIGKILL'));
    const waiting = engine.ask(script('token=b'));
    await assert.rejects(doomed.result, {
      code: 'engineCrashed',
      message: /signal SIGKILL in phase prefill/,
    });
    const second = (await waiting.result).answer;
    assert.notEqual(first, second);
  });

  it('names exit code and last words of a process that gives up', async () => {
    await assert.rejects(engine.ask(script('stderr=GGML_ASSERT_failed wait=50 exit=7')).result, {
      code: 'engineCrashed',
      message: /exit code 7.*GGML_ASSERT_failed/,
    });
    assert.ok(log.some((line) => line.includes('GGML_ASSERT_failed')));
  });

  it('gives up after three crashes', async () => {
    for (let i = 0; i < 3; i++) {
      await assert.rejects(engine.ask(script('exit=1')).result, /exit code 1/);
    }
    await assert.rejects(engine.ask(script('token=a')).result, {
      code: 'engineCrashed',
      message: /3 times in 5 minutes/,
    });
  });

  it('tells why a process that cannot run at all ended', async () => {
    const broken = new ScriptedChild("throw new Error('no such thing')");
    const other = new Engine({ workerPath: broken.workerPath });
    await assert.rejects(other.ask(script('token=a')).result, { code: 'engineCrashed' });
    await other.dispose();
    broken.dispose();
  });

  it('counts a lost process as cancelled when stopping was asked for', async () => {
    const job = engine.ask(script('phase=prefill wait=200 deaf kill=SIGKILL'));
    await wait(150);
    job.cancel();
    await assert.rejects(job.result, { code: 'cancelled' });
  });

  it('gives the process neither flags nor options of its parent', async () => {
    const before = process.env.NODE_OPTIONS;
    process.env.NODE_OPTIONS = '--no-warnings';
    try {
      const { events } = await run('env');
      const token = events.find((event) => event.type === 'token');
      assert.equal(token?.type === 'token' && token.text, '[[],null]');
    } finally {
      if (before === undefined) delete process.env.NODE_OPTIONS;
      else process.env.NODE_OPTIONS = before;
    }
  });

  it('ends the process and all requests on dispose', async () => {
    const running = engine.ask(script('wait=5000'));
    const waiting = engine.ask(script('token=a'));
    const rejected = Promise.all([
      assert.rejects(running.result, { code: 'cancelled' }),
      assert.rejects(waiting.result, { code: 'cancelled' }),
    ]);
    await wait(200);
    const pid = engine.pid!;
    assert.ok(alive(pid));
    let gone = 0;
    const watch = setInterval(() => {
      if (gone === 0 && !alive(pid)) gone = performance.now();
    }, 5);
    await engine.dispose();
    clearInterval(watch);
    assert.ok(!alive(pid));
    // Half a second would be a wait for output that nobody reads.
    assert.ok(gone === 0 || performance.now() - gone < 300, `${performance.now() - gone} ms`);
    await rejected;
    await assert.rejects(engine.ask(script('token=a')).result, { code: 'cancelled' });
  });

  it('kills a process that ignores the end of its channel', async () => {
    const stubborn = new ScriptedChild(
      "process.on('disconnect', () => {}); process.on('message', () => {}); setInterval(() => {}, 1000);",
    );
    const other = new Engine({ workerPath: stubborn.workerPath });
    const job = other.ask(script('x'));
    job.result.catch(() => undefined);
    await wait(200);
    const { pid } = other;
    const started = performance.now();
    await other.dispose();
    const took = performance.now() - started;
    assert.ok(took > 2_500 && took < 6_000, `${took}`);
    assert.ok(!alive(pid!));
    stubborn.dispose();
  });

  it('gives back a GPU that nobody uses, and only a GPU', async () => {
    const idle = new Engine({ workerPath: child.workerPath, gpuIdleMs: () => 150 });
    try {
      const pidOf = async (text: string) => {
        await idle.ask(script(text)).result;
        return idle.pid!;
      };
      const onCpu = await pidOf('place=cpu token=a');
      await wait(300);
      assert.equal(idle.pid, onCpu);
      const onGpu = await pidOf('place=cuda token=a');
      assert.equal(onGpu, onCpu);
      // A question that takes longer than the limit is no idling.
      assert.equal(await pidOf('wait=300 token=a'), onGpu);
      await wait(400);
      assert.equal(idle.pid, undefined);
      assert.ok(!alive(onGpu));
      assert.notEqual(await pidOf('place=cpu token=a'), onGpu);
    } finally {
      await idle.dispose();
    }
  });

  it('starts anew after a GPU has failed', async () => {
    const { pid } = await engine
      .ask(script('place=cuda token=a'))
      .result.then(() => ({ pid: engine.pid }));
    const failed = engine.ask(script('place=cuda error=deviceUnavailable'));
    const next = engine.ask(script('token=b'));
    await assert.rejects(failed.result, { code: 'deviceUnavailable' });
    await next.result;
    assert.notEqual(engine.pid, pid);
    const other = engine.pid;
    await assert.rejects(engine.ask(script('error=deviceUnavailable')).result);
    await engine.ask(script('token=c')).result;
    assert.equal(engine.pid, other, 'on the CPU there is nothing to recover from');
  });

  it('survives a listener that throws', async () => {
    const job = engine.ask(script('token=a'), {
      onEvent: () => {
        throw new Error('view is gone');
      },
    });
    assert.ok((await job.result).answer);
    assert.ok(log.some((line) => line.includes('view is gone')));
  });

  it('leaves no abort listener behind', async () => {
    const abort = new AbortController();
    let added = 0;
    const { addEventListener, removeEventListener } = abort.signal;
    abort.signal.addEventListener = ((...args: Parameters<typeof addEventListener>) => {
      added++;
      addEventListener.apply(abort.signal, args);
    }) as typeof addEventListener;
    abort.signal.removeEventListener = ((...args: Parameters<typeof removeEventListener>) => {
      added--;
      removeEventListener.apply(abort.signal, args);
    }) as typeof removeEventListener;
    await engine.ask(script('token=a'), { signal: abort.signal }).result;
    assert.equal(added, 0);
  });
});
