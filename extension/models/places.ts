/** Where models lie on a machine: Longsight's own folder and those of other programs. */
import os from 'node:os';
import path from 'node:path';

export type Environment = Readonly<Record<string, string | undefined>>;

export interface Places {
  /** Folders with GGUF files somewhere in them, each with its source in words. */
  folders: { source: string; path: string }[];
  /** Folders in Ollama's layout: manifests, and blobs named by hash. */
  ollama: string[];
}

/** `$XDG_DATA_HOME/longsight/models`. */
export function ownModelsFolder(env: Environment = process.env, home = os.homedir()): string {
  const data = absolute(env['XDG_DATA_HOME']) ?? path.join(home, '.local', 'share');
  return path.join(data, 'longsight', 'models');
}

/** `modelsFolder`: the user's own; '' = the default one. */
export function modelPlaces(
  modelsFolder: string,
  env: Environment = process.env,
  home = os.homedir(),
): Places {
  const cache = absolute(env['XDG_CACHE_HOME']) ?? path.join(home, '.cache');
  const huggingFace = env['HF_HOME'] || path.join(cache, 'huggingface');
  const hub = env['HF_HUB_CACHE'] || path.join(huggingFace, 'hub');
  return {
    folders: [
      { source: 'Models folder', path: modelsFolder || ownModelsFolder(env, home) },
      { source: 'LM Studio', path: path.join(home, '.lmstudio', 'models') },
      { source: 'LM Studio', path: path.join(home, '.cache', 'lm-studio', 'models') },
      { source: 'Hugging Face', path: hub },
    ],
    ollama: env['OLLAMA_MODELS']
      ? [env['OLLAMA_MODELS']]
      : // The second is that of Ollama's Linux service.
        [path.join(home, '.ollama', 'models'), '/usr/share/ollama/.ollama/models'],
  };
}

/** The XDG rules: a relative path there is ignored. */
function absolute(folder: string | undefined): string | undefined {
  return folder && path.isAbsolute(folder) ? folder : undefined;
}
