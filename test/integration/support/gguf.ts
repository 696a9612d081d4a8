/** Takes a GGUF header apart and writes it again, to make files that are wrong on purpose. */
import { closeSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';

interface Tensor {
  name: string;
  dims: bigint[];
  type: number;
}

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

  set(key: string, value: string | number): void {
    const entry = this.metadata.find((candidate) => candidate.key === key)!;
    entry.value = typeof value === 'string' ? text(value) : u32(value);
  }

  /** Header with fresh offsets, then zeros: a sparse file of the size that the header declares. */
  write(file: string): number {
    const parts = [u32(magic), u32(this.version), u64(BigInt(this.tensors.length))];
    parts.push(u64(BigInt(this.metadata.length)));
    for (const { key, type, value } of this.metadata) parts.push(text(key), u32(type), value);
    let offset = 0n;
    for (const { name, dims, type } of this.tensors) {
      parts.push(text(name), u32(dims.length), ...dims.map(u64), u32(type), u64(offset));
      offset = aligned(offset + sizeOf(dims, type));
    }
    const header = Buffer.concat(parts);
    const handle = openSync(file, 'w');
    writeSync(handle, header);
    const size = Number(aligned(BigInt(header.length)) + offset);
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
