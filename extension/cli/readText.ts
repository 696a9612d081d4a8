/** A text that the command line names: a file, a pipe, whatever can be opened. */
import { createReadStream } from 'node:fs';
import { cancelled, EngineError } from '../engine/errors';

/** No context is nearly as long; a device such as /dev/zero never ends. */
export const mostTextBytes = 256 * 2 ** 20;

/** Throws `unreadableFile`, also for more than `mostBytes`, and `cancelled` when the signal fires. */
export async function readText(
  file: string,
  signal: AbortSignal,
  mostBytes = mostTextBytes,
): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  try {
    for await (const chunk of createReadStream(file, { signal })) {
      chunks.push(chunk as Uint8Array);
      bytes += (chunk as Uint8Array).length;
      if (bytes > mostBytes) break;
    }
  } catch (error) {
    if (signal.aborted) throw cancelled();
    throw new EngineError(
      'unreadableFile',
      `The text ${file} cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)}).`,
      'Name a file that exists and that this user may read.',
    );
  }
  if (bytes > mostBytes) {
    throw new EngineError(
      'unreadableFile',
      `The text ${file} has more than ${mostBytes} bytes.`,
      'Name a shorter one: no context holds so much.',
    );
  }
  return new Uint8Array(Buffer.concat(chunks, bytes));
}
