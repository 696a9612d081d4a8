/**
 * Text for `bench` when none is given: the same on every machine, and enough like prose and code
 * for a tokenizer (words repeat by Zipf's law, lines and indentation vary).
 */
import { randomOf } from '../engine/random';

const stems = (
  'return value index buffer stream parse token model layer cache const function string number ' +
  'error result request config update select window thread memory kernel matrix query handle ' +
  'length offset format module import export default static public private class object array'
).split(' ');
const endings = ['', 's', 'Of', 'At', 'Count', 'Size', 'List', 'Name', 'Id', 'Map', 'Set', 'Text'];
const joints = [' ', ' ', ' ', ', ', ' = ', '(', ') ', '.', ': ', ' + '];

/** At least `bytes` bytes of ASCII. */
export function generatedText(bytes: number, seed = 1): Uint8Array {
  const random = randomOf(seed);
  const pick = <T>(list: readonly T[]): T => {
    // Squaring prefers the front of the list, as words of a language do.
    const share = random() ** 2;
    return list[Math.floor(share * list.length)]!;
  };
  const parts: string[] = [];
  let length = 0;
  while (length < bytes) {
    const words = 3 + Math.floor(random() * 9);
    let line = '  '.repeat(Math.floor(random() * 4));
    for (let i = 0; i < words; i++) line += pick(stems) + pick(endings) + pick(joints);
    line += random() < 0.2 ? '\n\n' : '\n';
    parts.push(line);
    length += line.length;
  }
  return new TextEncoder().encode(parts.join(''));
}
