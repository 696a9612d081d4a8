/** Finds the GGUF models on this machine. Reads names and the first bytes of each file only. */
import { readdir, readFile, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import { readGgufFacts, type GgufFacts } from './ggufHeader';
import { modelPlaces, type Environment } from './places';
import { whyNotRunnable } from './runnable';

export interface Model {
  /** Absolute path of a GGUF file; of a split model the first. */
  path: string;
  name: string;
  /** Where it was found, in words: `Models folder`, `LM Studio`, `Ollama`, `Hugging Face`. */
  source: string;
  /** All files of a split model. */
  sizeBytes: number;
  /** E.g. `Q4_K_M`; '' when the file does not say. */
  quantization: string;
  /** E.g. `llama`; '' when the file does not say. */
  architecture: string;
  /** Null when Longsight can run it as far as its first bytes tell; else why not. */
  problem: string | null;
}

/** Folders deeper than this below a place are not models: Hugging Face's are at 4. */
const deepestFolder = 6;
const headsAtOnce = 16;

/**
 * All models, place by place, by name within one; files that are reachable in two ways come once.
 * What is missing or unreadable is passed over: the list only shows what can be chosen.
 * `modelsFolder`: the user's own; '' = the default one.
 */
export async function findModels(
  modelsFolder = '',
  env: Environment = process.env,
  home?: string,
): Promise<Model[]> {
  const places = modelPlaces(modelsFolder, env, home);
  const found = await Promise.all([
    ...places.folders.map(({ source, path }) => ggufFilesIn(path, source)),
    ...places.ollama.map(ollamaModelsIn),
  ]);
  const models: Model[] = [];
  const seen = new Set<string>();
  for (const candidates of found) {
    for (let from = 0; from < candidates.length; from += headsAtOnce) {
      const batch = candidates.slice(from, from + headsAtOnce);
      for (const described of await Promise.all(batch.map(describe))) {
        if (described === null || seen.has(described.realPath)) continue;
        seen.add(described.realPath);
        models.push(described.model);
      }
    }
  }
  return models;
}

/**
 * What answers when the user has named no model: the first of the own models folder that can be
 * run, else the only one on the machine. Null when there is none, or a choice that is the user's.
 */
export async function defaultModel(
  modelsFolder = '',
  env: Environment = process.env,
  home?: string,
): Promise<Model | null> {
  const usable = (await findModels(modelsFolder, env, home)).filter(
    ({ problem }) => problem === null,
  );
  const own = usable.find(({ source }) => source === 'Models folder');
  return own ?? (usable.length === 1 ? (usable[0] ?? null) : null);
}

interface Candidate {
  path: string;
  name: string;
  source: string;
  /** Number of files of a split model. */
  splits: number;
}

/** GGUF files below a folder, without projectors and without the later files of split models. */
async function ggufFilesIn(root: string, source: string): Promise<Candidate[]> {
  const candidates: Candidate[] = [];
  const visit = async (folder: string, depth: number): Promise<void> => {
    const entries = await readdir(folder, { withFileTypes: true }).catch(() => []);
    entries.sort((a, b) => (a.name < b.name ? -1 : 1));
    for (const entry of entries) {
      const entryPath = path.join(folder, entry.name);
      if (entry.isDirectory()) {
        if (depth < deepestFolder) await visit(entryPath, depth + 1);
      } else if (/\.gguf$/i.test(entry.name) && !/mmproj/i.test(entry.name)) {
        const split = /-(\d{5})-of-(\d{5})\.gguf$/i.exec(entry.name);
        if (split && Number(split[1]) !== 1) continue;
        const name = entry.name.replace(/(-\d{5}-of-\d{5})?\.gguf$/i, '');
        candidates.push({ path: entryPath, name, source, splits: split ? Number(split[2]) : 1 });
      }
    }
  };
  await visit(root, 0);
  return candidates;
}

/** Ollama: `manifests/<registry>/<namespace>/<model>/<tag>` names a blob by its hash. */
async function ollamaModelsIn(root: string): Promise<Candidate[]> {
  const candidates: Candidate[] = [];
  const visit = async (names: string[]): Promise<void> => {
    const folder = path.join(root, 'manifests', ...names);
    const entries = await readdir(folder, { withFileTypes: true }).catch(() => []);
    entries.sort((a, b) => (a.name < b.name ? -1 : 1));
    for (const entry of entries) {
      const inside = [...names, entry.name];
      if (entry.isDirectory() && inside.length < deepestFolder) await visit(inside);
      if (!entry.isFile() || inside.length < 3) continue;
      const blob = await ollamaBlob(path.join(folder, entry.name));
      if (blob === null) continue;
      const name = ollamaName(inside);
      candidates.push({ path: path.join(root, 'blobs', blob), name, source: 'Ollama', splits: 1 });
    }
  };
  await visit([]);
  return candidates;
}

/** `llama3.2:3b`, `someone/model:tag`, `hf.co/someone/model:tag`, as `ollama run` takes it. */
function ollamaName(parts: string[]): string {
  const tag = parts.at(-1) ?? '';
  const shown = parts.slice(0, -1);
  if (shown[0] === 'registry.ollama.ai') shown.shift();
  if (shown[0] === 'library') shown.shift();
  return `${shown.join('/')}:${tag}`;
}

interface OllamaManifest {
  layers?: { mediaType?: unknown; digest?: unknown }[];
}

/** File name of the model's blob; null when the manifest has none. */
async function ollamaBlob(manifest: string): Promise<string | null> {
  try {
    const { layers } = JSON.parse(await readFile(manifest, 'utf8')) as OllamaManifest;
    const model = layers?.find(
      ({ mediaType }) => mediaType === 'application/vnd.ollama.image.model',
    );
    const digest = /^sha256:([0-9a-f]{64})$/.exec(String(model?.digest));
    return digest ? `sha256-${digest[1]}` : null;
  } catch {
    return null;
  }
}

async function describe(candidate: Candidate): Promise<{ model: Model; realPath: string } | null> {
  try {
    const [realPath, sizeBytes, facts] = await Promise.all([
      realpath(candidate.path),
      sizeOf(candidate),
      readGgufFacts(candidate.path),
    ]);
    const { path, name, source, splits } = candidate;
    const architecture = facts?.architecture ?? '';
    const quantization = facts?.quantization || quantizationIn(name);
    const problem = problemOf(facts, splits);
    return {
      model: { path, name, source, sizeBytes, quantization, architecture, problem },
      realPath,
    };
  } catch {
    return null;
  }
}

async function sizeOf({ path: first, splits }: Candidate): Promise<number> {
  const files = Array.from({ length: Math.min(splits, 1_000) }, (_, index) =>
    first.replace(/-\d{5}(-of-\d{5}\.gguf)$/i, `-${String(index + 1).padStart(5, '0')}$1`),
  );
  const sizes = await Promise.all(files.map(async (file) => (await stat(file)).size));
  return sizes.reduce((total, size) => total + size, 0);
}

function problemOf(facts: GgufFacts | null, splits: number): string | null {
  if (facts === null) return 'not a GGUF file of version 2 or 3, or not readable';
  if (splits > 1) return `split into ${splits} files: merge them with llama-gguf-split --merge`;
  return whyNotRunnable(facts);
}

/** The quantization by the usual way to name files. */
function quantizationIn(name: string): string {
  const match = /(?:^|[-._])((?:I?Q\d(?:_\w+)?|BF16|F16|F32|MXFP4))(?:$|[-.])/i.exec(name);
  return match?.[1]?.toUpperCase() ?? '';
}
