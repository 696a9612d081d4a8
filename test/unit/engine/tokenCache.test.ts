import assert from 'node:assert/strict';
import { concatenate, TokenCache } from '../../../extension/engine/tokenCache';

describe('engine/tokenCache', () => {
  let asked: { text: string; special: boolean }[][];
  const { signal } = new AbortController();
  const make = () => {
    asked = [];
    return new TokenCache({
      tokenize: async (pieces) => {
        asked.push(pieces as { text: string; special: boolean }[]);
        return pieces.map(({ text, special }) =>
          Int32Array.from(Buffer.from(text as string), (byte) => byte + (special ? 1000 : 0)),
        );
      },
    });
  };
  const piece = (text: string, special = false) => ({ text, special });
  const long = 'x'.repeat(100);

  it('tokenizes each text once, whatever its length', async () => {
    const cache = make();
    const first = await cache.tokens([piece('a'), piece(long), piece('a')], signal);
    assert.deepEqual(
      first.map((tokens) => tokens.length),
      [1, 100, 1],
    );
    await cache.tokens([piece(long), piece('a'), piece('b')], signal);
    assert.deepEqual(
      asked.map((batch) => batch.map(({ text }) => text)),
      [['a', long], ['b']],
    );
  });

  it('keeps special text and plain text apart', async () => {
    const cache = make();
    for (const text of ['<|im_end|>', `${long}<|im_end|>`]) {
      const [plain, special] = await cache.tokens([piece(text), piece(text, true)], signal);
      assert.notDeepEqual(plain, special);
    }
  });

  it('forgets what two prompts did not use', async () => {
    const cache = make();
    for (const text of ['a', 'b', 'c', 'a']) {
      cache.begin();
      await cache.tokens([piece(text), piece(long)], signal);
    }
    assert.deepEqual(
      asked.flat().map(({ text }) => text),
      ['a', long, 'b', 'c', 'a'],
    );
  });

  it('works in batches that report and can be cancelled', async () => {
    const cache = make();
    const abort = new AbortController();
    const big = (mark: string) => piece(mark.repeat(400_000));
    const reported: number[] = [];
    await assert.rejects(
      cache.tokens([big('a'), big('b'), big('c'), big('d')], abort.signal, (characters) => {
        reported.push(characters);
        abort.abort();
      }),
      { name: 'AbortError' },
    );
    assert.deepEqual(reported, [800_000]);
  });

  it('joins lists', () => {
    assert.deepEqual(
      [...concatenate([Int32Array.of(1, 2), Int32Array.of(), Int32Array.of(3)])],
      [1, 2, 3],
    );
    assert.equal(concatenate([]).length, 0);
  });
});
