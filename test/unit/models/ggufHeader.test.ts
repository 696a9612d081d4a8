import assert from 'node:assert/strict';
import { parseGgufHead, readGgufFacts } from '../../../extension/models/ggufHeader';
import { gguf, text, uint32, uint64 } from './gguf';

const facts = { 'general.architecture': 'llama', 'general.name': 'Tiny', 'general.file_type': 3 };
const read = { architecture: 'llama', name: 'Tiny', quantization: 'Q4_1', keys: new Map() };

describe('GGUF header', () => {
  it('has the facts that a list shows', () => {
    assert.deepEqual(parseGgufHead(gguf(facts)), read);
    assert.deepEqual(parseGgufHead(gguf(facts, 2)), read);
    assert.deepEqual(parseGgufHead(gguf({})), {
      architecture: '',
      name: '',
      quantization: '',
      keys: new Map(),
    });
  });

  it("has the values under the architecture's keys", () => {
    const half = Buffer.concat([uint32(6), Buffer.from(new Float32Array([0.5]).buffer)]);
    const no = Buffer.concat([uint32(7), Buffer.from([0])]);
    const head = gguf({
      ...facts,
      'llama.block_count': 12,
      'llama.rope.scaling.type': 'yarn',
      'llama.rope.scaling.factor': half,
      'llama.attention.causal': no,
      'other.block_count': 13,
    });
    assert.deepEqual(
      parseGgufHead(head)?.keys,
      new Map<string, unknown>([
        ['block_count', 12],
        ['rope.scaling.type', 'yarn'],
        ['rope.scaling.factor', 0.5],
        ['attention.causal', false],
      ]),
    );
  });

  it('passes over values of every other type', () => {
    const scalars = [1, 1, 2, 2, 4, 4, 4, 1, null, null, 8, 8, 8].flatMap((size, type) =>
      size === null ? [] : [[`scalar${type}`, Buffer.concat([uint32(type), Buffer.alloc(size)])]],
    );
    const numbers = Buffer.concat([uint32(9), uint32(5), uint64(3), Buffer.alloc(12)]);
    const strings = Buffer.concat([uint32(9), uint32(8), uint64(2), text('a'), text('b')]);
    const others = { ...Object.fromEntries(scalars), numbers, strings } as Record<string, Buffer>;
    assert.deepEqual(parseGgufHead(gguf({ ...others, ...facts })), read);
  });

  it('has what comes before the end of what was read', () => {
    const whole = gguf({
      ...facts,
      last: Buffer.concat([uint32(9), uint32(4), uint64(2n ** 63n)]),
    });
    assert.deepEqual(parseGgufHead(whole), read);
    for (let length = 0; length < whole.length; length++) {
      const cut = parseGgufHead(whole.subarray(0, length));
      if (length < 24) assert.equal(cut, null);
      else assert.ok(cut !== null && 'Tiny'.startsWith(cut.name));
    }
  });

  it('is not there in anything else', () => {
    assert.equal(parseGgufHead(Buffer.from('GGML'.repeat(10))), null);
    assert.equal(parseGgufHead(gguf(facts, 1)), null);
    assert.equal(parseGgufHead(gguf(facts, 0x03000000)), null);
  });

  it('never throws, whatever the bytes', () => {
    const start = gguf(facts);
    let state = 7;
    for (let round = 0; round < 20_000; round++) {
      const bytes = Buffer.from(start);
      for (let change = 0; change < 3; change++) {
        state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
        bytes[8 + (state % (bytes.length - 8))] = (state >> 8) & 0xff;
      }
      parseGgufHead(bytes);
    }
  });

  it('is null where there is no file', async () => {
    assert.equal(await readGgufFacts('/nowhere/model.gguf'), null);
    assert.equal(await readGgufFacts('/'), null);
  });
});
