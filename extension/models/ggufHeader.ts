/** The few facts of a GGUF file that a list of models shows, from its first bytes. */
import { open } from 'node:fs/promises';

export interface GgufFacts {
  /** `general.architecture`; '' when the header names none near its beginning. */
  architecture: string;
  /** `general.name`; '' when missing. */
  name: string;
  /** `general.file_type` in words, e.g. `Q4_K_M`; '' when missing or unknown. */
  quantization: string;
  /** The numbers, texts and truths under the architecture's own keys, without its name. */
  keys: ReadonlyMap<string, GgufValue>;
}

export type GgufValue = string | number | boolean;

// Files are written with their general facts first; the vocabulary, which is large, comes later.
const headBytes = 64 * 1024;

/** Null for anything that is not a readable GGUF file. Never throws. */
export async function readGgufFacts(path: string): Promise<GgufFacts | null> {
  try {
    const file = await open(path, 'r');
    try {
      const head = Buffer.alloc(headBytes);
      const { bytesRead } = await file.read(head, 0, headBytes, 0);
      return parseGgufHead(head.subarray(0, bytesRead));
    } finally {
      await file.close();
    }
  } catch {
    return null;
  }
}

/** From the beginning of a file; what lies behind it is unknown. Null when it is no GGUF. */
export function parseGgufHead(head: Buffer): GgufFacts | null {
  if (head.length < 24 || head.toString('latin1', 0, 4) !== 'GGUF') return null;
  const version = head.readUInt32LE(4);
  if (version < 2 || version > 3) return null;
  const keys = new Map<string, GgufValue>();
  const facts: GgufFacts = { architecture: '', name: '', quantization: '', keys };
  const reader = new Reader(head, 16);
  try {
    for (let left = reader.count(); left > 0; left--) {
      const key = reader.text();
      const value = reader.value(reader.number(4));
      if (key === 'general.architecture' && typeof value === 'string') facts.architecture = value;
      if (key === 'general.name' && typeof value === 'string') facts.name = value;
      if (key === 'general.file_type' && typeof value === 'number') {
        facts.quantization = fileTypes[value] ?? '';
      }
      // The architecture is named first in every file.
      const prefix = `${facts.architecture}.`;
      if (value !== undefined && prefix !== '.' && key.startsWith(prefix)) {
        keys.set(key.slice(prefix.length), value);
      }
    }
  } catch (error) {
    // The head ends before the metadata does: what was found so far is what there is to show.
    if (!(error instanceof RangeError)) throw error;
  }
  return facts;
}

// Sizes of the scalar value types 0 to 12; 8 is a string, 9 an array.
const scalarBytes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
const stringType = 8;
const arrayType = 9;
const float32Type = 6;
const boolType = 7;

/** Reads forward; everything beyond the end is a RangeError. */
class Reader {
  constructor(
    private readonly bytes: Buffer,
    private at: number,
  ) {}

  count(): number {
    const count = this.bytes.readBigUInt64LE(this.at);
    this.skip(8);
    // Larger numbers lie beyond any head and end it in the same way.
    return Number(count);
  }

  number(size: number): number {
    const value = this.bytes.readUIntLE(this.at, size);
    this.skip(size);
    return value;
  }

  text(): string {
    const length = this.count();
    const start = this.at;
    this.skip(length);
    return this.bytes.toString('utf8', start, this.at);
  }

  /** Strings, numbers of up to 4 bytes and truths; other values are passed over and undefined. */
  value(type: number): GgufValue | undefined {
    if (type === stringType) return this.text();
    if (type === arrayType) {
      const itemType = this.number(4);
      const items = this.count();
      if (itemType === stringType) {
        for (let left = items; left > 0; left--) this.text();
      } else {
        this.skip(items * this.sizeOf(itemType));
      }
      return undefined;
    }
    const size = this.sizeOf(type);
    const at = this.at;
    this.skip(size);
    if (size > 4) return undefined;
    if (type === float32Type) return this.bytes.readFloatLE(at);
    const whole = this.bytes.readUIntLE(at, size);
    return type === boolType ? whole !== 0 : whole;
  }

  private sizeOf(type: number): number {
    const size = scalarBytes[type];
    // Arrays of arrays do not occur in models.
    if (!size) throw new RangeError(`unknown value type ${type}`);
    return size;
  }

  private skip(bytes: number): void {
    if (!(this.at + bytes <= this.bytes.length)) throw new RangeError('end of the head');
    this.at += bytes;
  }
}

// llama.cpp's llama_ftype.
const fileTypes: Record<number, string> = {
  0: 'F32',
  1: 'F16',
  2: 'Q4_0',
  3: 'Q4_1',
  7: 'Q8_0',
  8: 'Q5_0',
  9: 'Q5_1',
  10: 'Q2_K',
  11: 'Q3_K_S',
  12: 'Q3_K_M',
  13: 'Q3_K_L',
  14: 'Q4_K_S',
  15: 'Q4_K_M',
  16: 'Q5_K_S',
  17: 'Q5_K_M',
  18: 'Q6_K',
  19: 'IQ2_XXS',
  20: 'IQ2_XS',
  21: 'Q2_K_S',
  22: 'IQ3_XS',
  23: 'IQ3_XXS',
  24: 'IQ1_S',
  25: 'IQ4_NL',
  26: 'IQ3_S',
  27: 'IQ3_M',
  28: 'IQ2_S',
  29: 'IQ2_M',
  30: 'IQ4_XS',
  31: 'IQ1_M',
  32: 'BF16',
  36: 'TQ1_0',
  37: 'TQ2_0',
  38: 'MXFP4',
};
