/**
 * The order in which files stand in the prompt: READMEs and manifests first, since they say what
 * the project is, those nearer to the root before deeper ones; then everything else by path. It
 * depends on paths alone, never on a locale, a clock or the question: the cached prefix of the
 * prompt lives from that.
 */

const readme = /^readme(\.[a-z0-9]+)?$/i;
const manifests = new Set([
  'package.json',
  'cargo.toml',
  'pyproject.toml',
  'setup.py',
  'setup.cfg',
  'requirements.txt',
  'go.mod',
  'go.work',
  'pom.xml',
  'build.gradle',
  'build.gradle.kts',
  'settings.gradle',
  'settings.gradle.kts',
  'cmakelists.txt',
  'meson.build',
  'makefile',
  'gemfile',
  'composer.json',
  'mix.exs',
  'pubspec.yaml',
  'package.swift',
  'deno.json',
  'build.sbt',
  'project.clj',
  'dune-project',
  'cabal.project',
  'stack.yaml',
  'build.zig',
  'module.bazel',
  'dockerfile',
]);
const manifestExtension = /\.(csproj|fsproj|vbproj|sln|cabal|gemspec)$/i;

export type Kind = 'readme' | 'manifest' | 'source';

export function kindOf(path: string): Kind {
  const name = path.slice(path.lastIndexOf('/') + 1).toLowerCase();
  if (readme.test(name)) return 'readme';
  return manifests.has(name) || manifestExtension.test(name) ? 'manifest' : 'source';
}

/** A sorted copy. Paths are compared by their UTF-16 code units. */
export function inPromptOrder<T extends { path: string }>(files: readonly T[]): T[] {
  const ranked = files.map((file) => ({ file, rank: rankOf(file.path) }));
  ranked.sort((a, b) => a.rank - b.rank || compare(a.file.path, b.file.path));
  return ranked.map(({ file }) => file);
}

function rankOf(path: string): number {
  const kind = kindOf(path);
  if (kind === 'source') return Number.MAX_SAFE_INTEGER;
  const depth = path.split('/').length;
  return 2 * depth + (kind === 'readme' ? 0 : 1);
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
