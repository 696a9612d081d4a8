/** What the list of models shows. Pure. */
import { formatBytes } from '../status/format';

export interface FoundModel {
  /** Absolute path of a GGUF file. */
  path: string;
  name: string;
  sizeBytes: number;
  /** Where it was found, in words: `Models folder`, `LM Studio`, … */
  source: string;
}

export type ModelItem =
  | { kind: 'source'; label: string }
  | { kind: 'model'; label: string; description: string; path: string; current: boolean };

/** Grouped by source in the order in which sources appear; a chosen model that was not found leads. */
export function modelItems(found: readonly FoundModel[], current: string): ModelItem[] {
  const items: ModelItem[] = [];
  if (current !== '' && !found.some((model) => model.path === current)) {
    const label = current.split(/[/\\]/).at(-1) ?? current;
    items.push({ kind: 'source', label: 'Chosen' });
    items.push({ kind: 'model', label, description: '', path: current, current: true });
  }
  for (const source of new Set(found.map((model) => model.source))) {
    items.push({ kind: 'source', label: source });
    for (const model of found) {
      if (model.source !== source) continue;
      items.push({
        kind: 'model',
        label: model.name,
        description: formatBytes(model.sizeBytes),
        path: model.path,
        current: model.path === current,
      });
    }
  }
  return items;
}

/** `SmolLM2-135M-Instruct.Q4_1` for `/models/SmolLM2-135M-Instruct.Q4_1.gguf`. */
export function modelName(path: string): string {
  return (path.split(/[/\\]/).at(-1) ?? path).replace(/\.gguf$/i, '');
}
