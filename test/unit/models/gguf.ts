/** A GGUF file with these strings and numbers, and no tensors. */
export function gguf(facts: Record<string, string | number | Buffer>, version = 3): Buffer {
  const entries = Object.entries(facts).map(([key, value]) => {
    if (Buffer.isBuffer(value)) return Buffer.concat([text(key), value]);
    return typeof value === 'string'
      ? Buffer.concat([text(key), uint32(8), text(value)])
      : Buffer.concat([text(key), uint32(4), uint32(value)]);
  });
  const head = Buffer.concat([uint32(version), uint64(0), uint64(entries.length)]);
  return Buffer.concat([Buffer.from('GGUF'), head, ...entries]);
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

export function uint64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

export function text(value: string): Buffer {
  return Buffer.concat([uint64(Buffer.byteLength(value)), Buffer.from(value)]);
}
