/**
 * Calibration files: epsilons by layer and head that `calibrate` chose for one model and one set of
 * parameters. The file lies beside the model and is used whenever it fits.
 */
import { createHash } from 'node:crypto';
import { open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import type { ModelSpec, NativeSession } from './addon';
import { EngineError, invalidParams } from './errors';
import { requireValidParams } from './params';
import type { CalibrationSummary, SampleAttentionParams } from './protocol';

const format = 'longsight-calibration';
const version = 1;
/** Metadata and the first tensors lie in it. */
const fingerprintBytes = 2 ** 20;

/** What the file is for; it is ignored beside another model. */
interface ModelFingerprint {
  bytes: number;
  sha256OfFirstMiB: string;
}

export interface CalibrationFile {
  format: typeof format;
  version: typeof version;
  model: ModelFingerprint;
  /** With these it was measured; alpha, denseBelowTokens, maxListShare and auditRows may differ. */
  params: SampleAttentionParams;
  summary: CalibrationSummary;
  /** [layer][head] */
  headEpsilons: number[][];
}

export interface FoundCalibration {
  path: string;
  /** Changes when the file does. */
  key: string;
  file: CalibrationFile;
}

export function calibrationPath(modelPath: string): string {
  return `${modelPath}.calibration.json`;
}

/** The calibration beside a model; null when there is none for it. Throws for a broken file. */
export async function findCalibration(modelPath: string): Promise<FoundCalibration | null> {
  const path = calibrationPath(modelPath);
  let text: string;
  let key: string;
  try {
    const info = await stat(path);
    key = `${info.mtimeMs}|${info.size}`;
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw broken(path, (error as NodeJS.ErrnoException).code ?? String(error));
  }
  const file = parse(path, text);
  const { bytes, sha256OfFirstMiB } = await fingerprint(modelPath);
  const same = file.model.bytes === bytes && file.model.sha256OfFirstMiB === sha256OfFirstMiB;
  return same ? { path, key, file } : null;
}

/** Hands the calibration to a session, which uses it for prompts that it fits. */
export function useCalibration(session: NativeSession, found: FoundCalibration): void {
  try {
    session.use({ params: found.file.params, headEpsilons: found.file.headEpsilons.flat() });
  } catch (error) {
    throw broken(found.path, error instanceof Error ? error.message : String(error));
  }
}

/** Writes the file whole or not at all; returns its path. */
export async function writeCalibration(
  spec: ModelSpec,
  params: SampleAttentionParams,
  summary: CalibrationSummary,
  headEpsilons: number[],
): Promise<string> {
  const rows = Array.from({ length: spec.layers }, (_, layer) =>
    headEpsilons.slice(layer * spec.heads, (layer + 1) * spec.heads),
  );
  const file: CalibrationFile = {
    format,
    version,
    model: await fingerprint(spec.path),
    params,
    summary,
    headEpsilons: rows,
  };
  const path = calibrationPath(spec.path);
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    await writeFile(temporary, `${JSON.stringify(file)}\n`);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw new EngineError(
      'unreadableFile',
      `The calibration ${path} cannot be written (${(error as NodeJS.ErrnoException).code ?? String(error)}).`,
      'Make the folder of the model writable, or copy the model to one that is.',
    );
  }
  return path;
}

async function fingerprint(modelPath: string): Promise<ModelFingerprint> {
  const handle = await open(modelPath);
  try {
    const { size } = await handle.stat();
    const buffer = Buffer.alloc(Math.min(size, fingerprintBytes));
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, 0);
    const hash = createHash('sha256').update(buffer.subarray(0, bytesRead));
    return { bytes: size, sha256OfFirstMiB: hash.digest('hex') };
  } finally {
    await handle.close();
  }
}

function parse(path: string, text: string): CalibrationFile {
  let file: Partial<CalibrationFile> | null;
  try {
    file = JSON.parse(text) as Partial<CalibrationFile> | null;
  } catch {
    throw broken(path, 'it is not JSON');
  }
  if (file?.format !== format) throw broken(path, `its format is not ${format}`);
  if (file.version !== version) throw broken(path, `its version is not ${version}`);
  const { model, params, headEpsilons } = file;
  if (typeof model?.bytes !== 'number' || typeof model.sha256OfFirstMiB !== 'string') {
    throw broken(path, 'it names no model');
  }
  const isRow = (row: unknown) =>
    Array.isArray(row) && row.every((value) => typeof value === 'number');
  if (!Array.isArray(headEpsilons) || !headEpsilons.every(isRow)) {
    throw broken(path, 'headEpsilons is not a list of lists of numbers');
  }
  try {
    requireValidParams(params ?? ({} as SampleAttentionParams));
  } catch (error) {
    throw broken(path, error instanceof Error ? error.message : String(error));
  }
  return file as CalibrationFile;
}

function broken(path: string, reason: string): EngineError {
  return invalidParams(
    `The calibration ${path} cannot be used: ${reason.replace(/\.$/, '')}.`,
    'Delete it, run `longsight calibrate` again, or switch calibration off.',
  );
}
