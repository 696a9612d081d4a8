/** What the list of models shows. Pure. */
import type { Model } from '../models/catalog';
import { formatBytes } from '../status/format';

export type ModelItem =
  | { kind: 'source'; label: string }
  | {
      kind: 'model';
      label: string;
      description: string;
      path: string;
      current: boolean;
      usable: boolean;
    };

/** Grouped by source in the order in which sources appear; a chosen model that was not found leads. */
export function modelItems(found: readonly Model[], current: string): ModelItem[] {
  const items: ModelItem[] = [];
  if (current !== '' && !found.some((model) => model.path === current)) {
    items.push({ kind: 'source', label: 'Chosen' });
    items.push({
      kind: 'model',
      label: modelName(current),
      description: '',
      path: current,
      current: true,
      usable: true,
    });
  }
  for (const source of new Set(found.map((model) => model.source))) {
    items.push({ kind: 'source', label: source });
    for (const model of found) {
      if (model.source !== source) continue;
      const { sizeBytes, quantization, problem } = model;
      items.push({
        kind: 'model',
        label: model.name,
        description: [formatBytes(sizeBytes), quantization, problem ?? '']
          .filter((part) => part !== '')
          .join(' · '),
        path: model.path,
        current: model.path === current,
        usable: problem === null,
      });
    }
  }
  return items;
}

/** `SmolLM2-135M-Instruct.Q4_1` for `/models/SmolLM2-135M-Instruct.Q4_1.gguf`. */
export function modelName(path: string): string {
  const name = (path.split(/[/\\]/).at(-1) ?? path).replace(/\.gguf$/i, '');
  // Ollama names files by their hash.
  return name.replace(/^(sha256-[0-9a-f]{8})[0-9a-f]+$/, '$1…');
}
