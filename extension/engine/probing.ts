/**
 * A text with planted `NAME = value` lines at even depths, and the question for each behind its end:
 * whether the model still finds what it read far away.
 */
import type { NativeModel } from './addon';
import { invalidParams } from './errors';
import { randomOf } from './random';

export interface PlantedValue {
  /** Where its line begins, as a share of the planted text's tokens. */
  depth: number;
  /** The question, and then the value. */
  asked: Int32Array;
  /** Tokens of the value, the last ones of `asked`. */
  valueTokens: number;
}

export interface PlantedText {
  tokens: Int32Array;
  values: PlantedValue[];
}

const digits = 6;
/** Log-probability, in nats, of a uniform guess of a value's digits. */
export const chance = -digits * Math.log(10);

const mostValues = 20;
const leastValues = 5;
const tokensPerValue = 400;
// Less text between two lines than this is a list of values, not a text.
const leastTokensBetween = 16;

const first = (
  'AMBER BRISK CEDAR DUSTY EMBER FROZEN GOLDEN HOLLOW INDIGO JADE ' +
  'KEEN LUNAR MISTY NOBLE OLIVE PLAIN QUIET RUSTY SILVER TIDAL'
).split(' ');
const second = (
  'ANCHOR BRIDGE CANYON DELTA ENGINE FALCON GARDEN HARBOR ISLAND JUNGLE ' +
  'KETTLE LANTERN MEADOW NEEDLE ORCHARD PILLAR QUARRY RIVER SADDLE TUNNEL'
).split(' ');

/**
 * The first tokens of `text` with the lines between, so that it and any of the questions have at
 * most `tokens` tokens. The same input gives the same lines. Throws `invalidParams` when that is too
 * little.
 */
export async function plantValues(
  model: NativeModel,
  text: Int32Array,
  tokens: number,
): Promise<PlantedText> {
  const planted = namesAndValues(
    Math.min(mostValues, Math.max(leastValues, Math.floor(tokens / tokensPerValue))),
    tokens,
  );
  const tokenized = await model.tokenize(
    planted.flatMap(({ name, value }) => {
      const question = `\n\nOnce more, the value from above:\n${name} = `;
      const texts = [`${name} = ${value}\n`, question, question + value];
      return texts.map((piece) => ({ text: piece, special: false }));
    }),
  );
  const lines = planted.map((_, index) => tokenized[3 * index]!);
  const asked = planted.map((_, index) => tokenized[3 * index + 2]!);
  const valueTokens = planted.map((_, index) =>
    tokensBehind(tokenized[3 * index + 1]!, asked[index]!),
  );

  const longest = Math.max(...asked.map(({ length }) => length));
  const spent = lines.reduce((sum, { length }) => sum + length, longest);
  const room = Math.min(tokens - spent, text.length);
  if (room < leastTokensBetween * planted.length) {
    throw invalidParams(
      `The probe plants ${planted.length} lines, which leaves ${Math.max(0, room)} of ${tokens} tokens for the text.`,
      `Use --tokens ${spent + leastTokensBetween * planted.length} or more with --probe.`,
    );
  }
  const chunks = await chunksOf(model, text.subarray(0, room), planted.length);

  const all = new Int32Array(tokens - longest);
  const starts: number[] = [];
  let at = 0;
  const append = (piece: Int32Array, limit: number) => {
    const fitting = piece.subarray(0, Math.max(0, limit - at));
    all.set(fitting, at);
    at += fitting.length;
  };
  let left = spent - longest;
  lines.forEach((line, index) => {
    append(chunks[index]!, all.length - left);
    starts.push(at);
    append(line, all.length);
    left -= line.length;
  });
  append(chunks[lines.length]!, all.length);
  return {
    tokens: all.subarray(0, at),
    values: asked.map((piece, index) => ({
      depth: starts[index]! / at,
      asked: piece,
      valueTokens: valueTokens[index]!,
    })),
  };
}

function namesAndValues(count: number, seed: number): { name: string; value: string }[] {
  const random = randomOf(seed);
  return shuffled(first, random)
    .slice(0, count)
    .map((word, index) => {
      const value = Math.floor((1 + 9 * random()) * 10 ** (digits - 1));
      return { name: `${word}_${second[(index * 7 + seed) % second.length]}`, value: `${value}` };
    });
}

function shuffled<T>(list: readonly T[], random: () => number): T[] {
  return list
    .map((item) => ({ item, key: random() }))
    .sort((a, b) => a.key - b.key)
    .map(({ item }) => item);
}

/** The text cut at line ends near the middles of `cuts` equal parts; each chunk tokenized alone. */
async function chunksOf(model: NativeModel, text: Int32Array, cuts: number): Promise<Int32Array[]> {
  const bytes = await model.detokenize(text);
  const ends = [0];
  for (let i = 0; i < cuts; i++) {
    const wanted = Math.floor(((i + 0.5) / cuts) * bytes.length);
    ends.push(cutAfter(bytes, Math.max(wanted, ends.at(-1)!), bytes.length / cuts / 2));
  }
  ends.push(bytes.length);
  return model.tokenize(
    ends.slice(1).map((end, i) => ({ text: bytes.subarray(ends[i], end), special: false })),
  );
}

/** The next line end, unless it is further than `reach`; then the next whole UTF-8 character. */
function cutAfter(bytes: Uint8Array, from: number, reach: number): number {
  const lineEnd = bytes.indexOf(0x0a, from);
  if (lineEnd >= 0 && lineEnd - from <= reach) return lineEnd + 1;
  let at = from;
  while (at < bytes.length && (bytes[at]! & 0xc0) === 0x80) at++;
  return at;
}

/** How many tokens of `whole` lie behind what it has in common with `start`. */
function tokensBehind(start: Int32Array, whole: Int32Array): number {
  let same = 0;
  while (same < start.length && start[same] === whole[same]) same++;
  return whole.length - same;
}
