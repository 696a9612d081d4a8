/** Reads, changes and writes GGUF headers: files that are wrong on purpose, and tiny models. */
import { closeSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';

interface Tensor {
  name: string;
  dims: bigint[];
  type: number;
}

/** A text, a list of texts, an unsigned number, a fraction, or a list of integers. */
export type MetadataValue = string | string[] | number | { float: number } | Int32Array;

export class GgufHeader {
  private constructor(
    private readonly version: number,
    /** Key, value type, and the value's bytes as they stand in the file. */
    readonly metadata: { key: string; type: number; value: Buffer }[],
    readonly tensors: Tensor[],
  ) {}

  static read(file: string): GgufHeader {
    const handle = openSync(file, 'r');
    const bytes = Buffer.alloc(16 << 20);
    readSync(handle, bytes, 0, bytes.length, 0);
    closeSync(handle);
    const reader = new Reader(bytes);
    if (reader.u32() !== magic) throw new Error(`${file} is no GGUF`);
    const version = reader.u32();
    const tensorCount = reader.u64();
    const metadataCount = reader.u64();
    const metadata = [];
    for (let i = 0n; i < metadataCount; i++) {
      const key = reader.text();
      const type = reader.u32();
      metadata.push({ key, type, value: reader.value(type) });
    }
    const tensors: Tensor[] = [];
    for (let i = 0n; i < tensorCount; i++) {
      const name = reader.text();
      const dims = Array.from({ length: reader.u32() }, () => reader.u64());
      const type = reader.u32();
      reader.u64();
      tensors.push({ name, dims, type });
    }
    return new GgufHeader(version, metadata, tensors);
  }

  /** A header for f32 tensors, by name and dimensions (innermost first). */
  static of(
    metadata: Record<string, MetadataValue>,
    tensors: Record<string, number[]>,
  ): GgufHeader {
    return new GgufHeader(
      3,
      Object.entries(metadata).map(([key, value]) => ({ key, ...encoded(value) })),
      Object.entries(tensors).map(([name, dims]) => ({ name, dims: dims.map(BigInt), type: 0 })),
    );
  }

  set(key: string, value: string | number): void {
    const entry = this.metadata.find((candidate) => candidate.key === key)!;
    entry.value = typeof value === 'string' ? text(value) : u32(value);
  }

  /**
   * Header with fresh offsets, then the tensors' values, zeros where there are none: a sparse file
   * of the size that the header declares, which is returned.
   */
  write(file: string, values: Record<string, Float32Array> = {}): number {
    const parts = [u32(magic), u32(this.version), u64(BigInt(this.tensors.length))];
    parts.push(u64(BigInt(this.metadata.length)));
    for (const { key, type, value } of this.metadata) parts.push(text(key), u32(type), value);
    let offset = 0n;
    const places: [string, bigint][] = [];
    for (const { name, dims, type } of this.tensors) {
      parts.push(text(name), u32(dims.length), ...dims.map(u64), u32(type), u64(offset));
      places.push([name, offset]);
      offset = aligned(offset + sizeOf(dims, type));
    }
    const header = Buffer.concat(parts);
    const handle = openSync(file, 'w');
    writeSync(handle, header);
    const begin = aligned(BigInt(header.length));
    for (const [name, place] of places) {
      const data = values[name];
      if (data) writeSync(handle, data, 0, data.byteLength, Number(begin + place));
    }
    const size = Number(begin + offset);
    ftruncateSync(handle, size);
    closeSync(handle);
    return size;
  }
}

const magic = 0x46554747;
const fixedSizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
const textType = 8;
const listType = 9;
/** ggml type -> bytes and elements of a block. */
const blocks: Record<number, [bigint, bigint]> = {
  0: [4n, 1n],
  1: [2n, 1n],
  2: [18n, 32n],
  3: [20n, 32n],
  8: [34n, 32n],
  12: [144n, 256n],
  14: [210n, 256n],
};

function sizeOf(dims: bigint[], type: number): bigint {
  const block = blocks[type];
  if (!block) throw new Error(`ggml type ${type} is not in the table`);
  return (dims.reduce((product, dim) => product * dim, 1n) / block[1]) * block[0];
}

function encoded(value: MetadataValue): { type: number; value: Buffer } {
  if (typeof value === 'string') return { type: textType, value: text(value) };
  if (typeof value === 'number') return { type: 4, value: u32(value) };
  if (Array.isArray(value)) {
    const parts = [u32(textType), u64(BigInt(value.length)), ...value.map(text)];
    return { type: listType, value: Buffer.concat(parts) };
  }
  if (value instanceof Int32Array) {
    const numbers = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    return {
      type: listType,
      value: Buffer.concat([u32(5), u64(BigInt(value.length)), numbers]),
    };
  }
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value.float);
  return { type: 6, value: bytes };
}

const aligned = (offset: bigint) => ((offset + 31n) / 32n) * 32n;

class Reader {
  private at = 0;
  constructor(private readonly bytes: Buffer) {}

  u32(): number {
    this.at += 4;
    return this.bytes.readUInt32LE(this.at - 4);
  }

  u64(): bigint {
    this.at += 8;
    return this.bytes.readBigUInt64LE(this.at - 8);
  }

  text(): string {
    const length = Number(this.u64());
    this.at += length;
    return this.bytes.toString('utf8', this.at - length, this.at);
  }

  value(type: number): Buffer {
    const from = this.at;
    this.skip(type);
    return this.bytes.subarray(from, this.at);
  }

  private skip(type: number): void {
    if (type === textType) this.text();
    else if (type === listType) {
      const itemType = this.u32();
      const count = this.u64();
      for (let i = 0n; i < count; i++) this.skip(itemType);
    } else this.at += fixedSizes[type]!;
  }
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return bytes;
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value, 'utf8');
  return Buffer.concat([u64(BigInt(bytes.length)), bytes]);
}
