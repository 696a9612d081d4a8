// `npm run package`: the extension for Linux x64 as longsight-linux-x64-VERSION.vsix. Fails when
// something is missing in it or something else got in.
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { build, bundledPackages, copyLibraries, shippedLibrary } from './build.mjs';
import { buildCudaForAll, cudaLibrary } from './cuda.mjs';
import { inRoot, root, tool } from './lib/paths.mjs';
import { main, output, Problem, say, step } from './lib/terminal.mjs';

const target = 'linux-x64';
const mostMegabytes = 60;

/** Packs what is built, and the CUDA engine for every GPU. @returns {Promise<string>} absolute path of the package */
export async function pack() {
  const { version } = JSON.parse(readFileSync(inRoot('package.json'), 'utf8'));
  const file = inRoot(`longsight-${target}-${version}.vsix`);
  checkNotices();
  await buildCudaForAll();
  copyLibraries();
  rmSync(file, { force: true });
  // prettier-ignore
  await step('Packing the extension', process.execPath, [
    tool.vsce, 'package', '--target', target, '--no-dependencies', '--out', file,
    // There is no public repository that links of the README could be made to point to.
    '--allow-missing-repository', '--no-rewrite-relative-links',
  ], { cwd: root });
  checkContents(file);
  checkSize(file);
  return file;
}

function checkSize(file) {
  const megabytes = (path) => statSync(path).size / 1e6;
  const whole = megabytes(file);
  const cuda = megabytes(inRoot('dist', cudaLibrary));
  say(`  ${file}: ${whole.toFixed(1)} MB, with ${cudaLibrary} of ${cuda.toFixed(1)} MB`);
  if (whole > mostMegabytes) {
    throw new Problem(
      `${file} has ${whole.toFixed(1)} MB, more than ${mostMegabytes} MB.`,
      'See what grew; each CUDA architecture in kernels/cuda/CMakeLists.txt is a copy of all kernels.',
    );
  }
}

/** Everything that is bundled has its licence in THIRD_PARTY_NOTICES, in the version that is used. */
function checkNotices() {
  const notices = readFileSync(inRoot('THIRD_PARTY_NOTICES'), 'utf8');
  const libraries = ['@node-llama-cpp/linux-x64', 'node-addon-api'];
  const missing = [...bundledPackages(), ...libraries]
    .map((name) => {
      const manifest = inRoot('node_modules', name, 'package.json');
      return `${name} ${JSON.parse(readFileSync(manifest, 'utf8')).version}`;
    })
    .concat(cudaRuntimeTitle())
    .filter((title) => !notices.includes(`\n${title}\n`));
  if (missing.length > 0) {
    throw new Problem(
      `THIRD_PARTY_NOTICES does not mention ${missing.join(', ')}.`,
      'Add the licence text of the package in that version.',
    );
  }
}

/** What is linked into the CUDA engine, in the version that is pinned. */
function cudaRuntimeTitle() {
  const pinned = readFileSync(inRoot('cuda-requirements.txt'), 'utf8');
  const version = /^nvidia-cuda-runtime==(\S+)/m.exec(pinned)?.[1];
  if (version === undefined)
    throw new Problem('cuda-requirements.txt pins no nvidia-cuda-runtime.');
  return `nvidia-cuda-runtime ${version}`;
}

function checkContents(file) {
  const read = 'import json, sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); ';
  const found = JSON.parse(
    output('python3', [
      '-c',
      `${read}print(json.dumps([i.filename for i in z.infolist()]))`,
      file,
    ]) ?? '[]',
  );
  const expected = expectedContents();
  const missing = expected.filter((name) => !found.includes(name));
  const foreign = found.filter((name) => !expected.includes(name));
  if (missing.length > 0 || foreign.length > 0) {
    const list = (title, names) => (names.length > 0 ? [`${title}: ${names.join(', ')}`] : []);
    throw new Problem(
      [`${file}:`, ...list('missing', missing), ...list('should not be in it', foreign)].join(
        '\n  ',
      ),
      'See .vscodeignore and scripts/package.mjs.',
    );
  }
  const manifest = output('python3', [
    '-c',
    `${read}print(z.read("extension.vsixmanifest").decode())`,
    file,
  ]);
  if (!manifest?.includes(`TargetPlatform="${target}"`)) {
    throw new Problem(`${file} is not marked as a package for ${target}.`);
  }
}

function expectedContents() {
  // The names carry the version of llama.cpp, the CPU variants those of the prebuilt package.
  const libraries = readdirSync(inRoot('build/native')).filter(
    (name) => shippedLibrary.test(name) && name.endsWith('.so'),
  );
  for (const name of [
    'libllama.',
    'libggml.',
    'libggml-base.',
    'libggml-cpu-x64.',
    'libggml-cpu-haswell.',
    'longsight-cuda.',
  ]) {
    if (!libraries.some((each) => each.startsWith(name))) {
      throw new Problem(
        `build/native has no ${name}so.`,
        'Build again: rm -rf build && npm run build',
      );
    }
  }
  const media = readdirSync(inRoot('media')).map((name) => `media/${name}`);
  for (const name of ['media/icon.png', 'media/longsight.svg']) {
    if (!existsSync(inRoot(name))) throw new Problem(`${name} is missing.`);
  }
  const inside = [
    'package.json',
    // vsce renames these two.
    'readme.md',
    'LICENSE.txt',
    'THIRD_PARTY_NOTICES',
    'dist/extension.js',
    'dist/worker.js',
    'dist/cli.js',
    'dist/longsight.node',
    'dist/webview/chat.js',
    'dist/webview/stats.js',
    ...libraries.map((name) => `dist/${name}`),
    ...media,
  ];
  return [
    '[Content_Types].xml',
    'extension.vsixmanifest',
    ...inside.map((name) => `extension/${name}`),
  ];
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  main(async () => {
    await build();
    process.stdout.write(`${await pack()}\n`);
  });
}
