import assert from 'node:assert/strict';
import { mkdirSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { defaultModel, findModels } from '../../../extension/models/catalog';
import { ownModelsFolder } from '../../../extension/models/places';
import { folderWith, removeFolders } from '../workspace/folders';
import { gguf } from './gguf';

const llama = gguf({ 'general.architecture': 'llama', 'general.file_type': 15 });
const ollamaFolder = '.ollama/models';

/** Keeps the models of this machine's Ollama service out. */
const onlyIn = (home: string) => ({ OLLAMA_MODELS: path.join(home, ollamaFolder) });

/** What `findModels` says about a home folder, in short. */
async function found(home: string, modelsFolder = '', env: Record<string, string> = onlyIn(home)) {
  const models = await findModels(modelsFolder, env, home);
  return models.map(
    ({ name, source, problem }) => `${source}: ${name}${problem ? ` (${problem})` : ''}`,
  );
}

function ollamaManifest(digest: string): string {
  const projector = { mediaType: 'application/vnd.ollama.image.projector', digest: 'sha256:00' };
  const model = { mediaType: 'application/vnd.ollama.image.model', digest: `sha256:${digest}` };
  return JSON.stringify({ schemaVersion: 2, layers: [projector, model] });
}

describe('model catalog', () => {
  afterEach(removeFolders);

  it('finds nothing where nothing is', async () => {
    const home = folderWith();
    assert.deepEqual(await found(home), []);
    assert.equal(await defaultModel('', onlyIn(home), home), null);
  });

  it('finds models in all the places where programs keep them', async () => {
    const digest = 'a'.repeat(64);
    const own = '.local/share/longsight/models';
    const hub = '.cache/huggingface/hub/models--org--tiny';
    const home = folderWith({
      [`${own}/SmolLM2-135M-Instruct.Q4_1.gguf`]: llama,
      [`${own}/notes.txt`]: 'x',
      '.lmstudio/models/org/Llama-3.2-GGUF/Llama-3.2-1B-Q8_0.gguf': llama,
      '.lmstudio/models/org/Llama-3.2-GGUF/mmproj-model-f16.gguf': llama,
      '.cache/lm-studio/models/org/old/old-F16.GGUF': llama,
      [`${hub}/blobs/abc`]: llama,
      [`${hub}/snapshots/1234/`]: '',
      [`${ollamaFolder}/blobs/sha256-${digest}`]: llama,
      [`${ollamaFolder}/manifests/registry.ollama.ai/library/llama3.2/3b`]: ollamaManifest(digest),
      [`${ollamaFolder}/manifests/registry.ollama.ai/someone/tuned/latest`]: ollamaManifest(
        'b'.repeat(64),
      ),
      [`${ollamaFolder}/manifests/hf.co/org/model/Q4`]: 'not json',
    });
    symlinkSync('../../blobs/abc', path.join(home, hub, 'snapshots/1234/tiny-q4_k_m.gguf'));
    assert.deepEqual(await found(home), [
      'Models folder: SmolLM2-135M-Instruct.Q4_1',
      'LM Studio: Llama-3.2-1B-Q8_0',
      'LM Studio: old-F16',
      'Hugging Face: tiny-q4_k_m',
      'Ollama: llama3.2:3b',
    ]);
    const ollama = (await findModels('', onlyIn(home), home)).at(-1);
    assert.equal(ollama?.path, path.join(home, ollamaFolder, 'blobs', `sha256-${digest}`));
    assert.equal(ollama.quantization, 'Q4_K_M');
    assert.equal(ollama.sizeBytes, llama.length);
  });

  it('names Ollama models as Ollama does', async () => {
    const digests = ['a', 'b', 'c', 'd'].map((letter) => letter.repeat(64));
    const manifests = [
      'registry.ollama.ai/library/llama3.2/3b',
      'registry.ollama.ai/someone/tuned/latest',
      'hf.co/org/model/Q4_K_M',
      'example.org/library/own/v1',
    ];
    const files: Record<string, string | Uint8Array> = {};
    manifests.forEach((manifest, index) => {
      files[`${ollamaFolder}/manifests/${manifest}`] = ollamaManifest(digests[index]!);
      files[`${ollamaFolder}/blobs/sha256-${digests[index]!}`] = llama;
    });
    const home = folderWith(files);
    const names = (await findModels('', onlyIn(home), home)).map(({ name }) => name);
    assert.deepEqual(names.sort(), [
      'example.org/library/own:v1',
      'hf.co/org/model:Q4_K_M',
      'llama3.2:3b',
      'someone/tuned:latest',
    ]);
  });

  it('looks where the environment and the settings say', async () => {
    const digest = 'a'.repeat(64);
    const home = folderWith({
      'data/longsight/models/a.gguf': llama,
      'mine/b.gguf': llama,
      'hf/hub/models--o--m/snapshots/1/c.gguf': llama,
      [`ollama/blobs/sha256-${digest}`]: llama,
      'ollama/manifests/registry.ollama.ai/library/d/latest': ollamaManifest(digest),
    });
    const env = {
      XDG_DATA_HOME: path.join(home, 'data'),
      HF_HOME: path.join(home, 'hf'),
      OLLAMA_MODELS: path.join(home, 'ollama'),
    };
    const others = ['Hugging Face: c', 'Ollama: d:latest'];
    assert.deepEqual(await found(home, '', env), ['Models folder: a', ...others]);
    assert.deepEqual(await found(home, path.join(home, 'mine'), env), [
      'Models folder: b',
      ...others,
    ]);
    const relative = ownModelsFolder({ XDG_DATA_HOME: 'relative' }, '/home/x');
    assert.equal(relative, '/home/x/.local/share/longsight/models');
  });

  it('says why a model cannot be run', async () => {
    const home = folderWith({
      'm/big-Q4_K_M-00001-of-00002.gguf': llama,
      'm/big-Q4_K_M-00002-of-00002.gguf': llama,
      'm/lost-00001-of-00002.gguf': llama,
      'm/other.gguf': gguf({ 'general.architecture': 'gemma3' }),
      'm/text.gguf': 'not a model',
      'm/empty.gguf': '',
      'm/folder.gguf/': '',
      'm/fine.gguf': llama,
    });
    symlinkSync('fine.gguf', path.join(home, 'm/same.gguf'));
    symlinkSync('gone.gguf', path.join(home, 'm/broken.gguf'));
    const modelsFolder = path.join(home, 'm');
    assert.deepEqual(await found(home, modelsFolder), [
      'Models folder: big-Q4_K_M (split into 2 files: merge them with llama-gguf-split --merge)',
      'Models folder: empty (not a GGUF file of version 2 or 3, or not readable)',
      'Models folder: fine',
      'Models folder: other (architecture gemma3: Longsight runs llama, qwen2, qwen3, internlm2, chatglm, glm4)',
      'Models folder: text (not a GGUF file of version 2 or 3, or not readable)',
    ]);
    const [big] = await findModels(modelsFolder, onlyIn(home), home);
    assert.equal(big?.sizeBytes, 2 * llama.length);
    assert.equal((await defaultModel(modelsFolder, onlyIn(home), home))?.name, 'fine');
  });

  it('does not read whole files, however large they are', async () => {
    const home = folderWith({ 'm/huge.gguf': llama });
    truncateSync(path.join(home, 'm/huge.gguf'), 400 * 2 ** 30);
    const [model] = await findModels(path.join(home, 'm'), onlyIn(home), home);
    assert.equal(model?.sizeBytes, 400 * 2 ** 30);
    assert.equal(model.problem, null);
  });

  it('has a default only where there is no choice to make', async () => {
    const home = folderWith({
      '.lmstudio/models/a.gguf': llama,
      '.lmstudio/models/gemma.gguf': gguf({ 'general.architecture': 'gemma3' }),
    });
    const name = async () => (await defaultModel('', onlyIn(home), home))?.name;
    assert.equal(await name(), 'a');
    writeFileSync(path.join(home, '.lmstudio/models/b.gguf'), llama);
    assert.equal(await name(), undefined);
    const own = path.join(home, '.local/share/longsight/models');
    mkdirSync(own, { recursive: true });
    writeFileSync(path.join(own, 'z.gguf'), llama);
    assert.equal(await name(), 'z');
  });
});
