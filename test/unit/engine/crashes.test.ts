import assert from 'node:assert/strict';
import type { ChildEnd } from '../../../extension/engine/child';
import { CrashRecord, describeCrash } from '../../../extension/engine/crashes';

const killed: ChildEnd = { exitCode: null, signal: 'SIGKILL', failure: '', lastLines: [] };

describe('engine/crashes', () => {
  it('says how the process ended, in which phase, and its last line', () => {
    const text = describeCrash(
      { exitCode: 134, signal: null, failure: '', lastLines: ['GGML_ASSERT(n > 0) failed', ' '] },
      'prefill',
    );
    assert.match(text, /exit code 134 in phase prefill\. Its last line: GGML_ASSERT/);
    assert.match(describeCrash(killed, null), /signal SIGKILL\./);
  });

  it('stops after three crashes in five minutes, and goes on later', () => {
    let now = 0;
    const record = new CrashRecord(() => now);
    assert.equal(record.add(killed, 'prefill').code, 'engineCrashed');
    now = 60_000;
    record.add(killed, 'decode');
    assert.equal(record.refusal(), null);
    now = 120_000;
    record.add(killed, 'load');
    const refusal = record.refusal()!;
    assert.equal(refusal.code, 'engineCrashed');
    assert.match(refusal.message, /3 times in 5 minutes.*SIGKILL in phase load/);
    assert.match(refusal.action, /in 180 s/);
    now = 300_001;
    assert.equal(record.refusal(), null);
  });
});
