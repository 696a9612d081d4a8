/**
 * What git leaves out: nested .gitignore files, those of the parents up to the repository's root,
 * and .git/info/exclude. Matching of patterns is the `ignore` package's; here is only which file
 * of patterns is asked about which path.
 */
import { lstat, readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import ignore, { type Ignore } from 'ignore';

/**
 * Left out without any rule, in every folder. Version control data is never the project's text;
 * the others are copies of foreign code that tools make, often in folders without a .gitignore.
 */
const alwaysIgnored = new Set([
  '.git',
  '.hg',
  '.svn',
  '.jj',
  'node_modules',
  '__pycache__',
  '.venv',
]);

// git itself compares without case where file systems do.
const ignoreCase = process.platform === 'win32' || process.platform === 'darwin';

/** A larger file of patterns is not written by hand; reading it whole would invite trouble. */
const maxRulesBytes = 1 << 20;

interface RuleSet {
  /** Absolute folder that the patterns are relative to. */
  base: string;
  /** One pattern a line. */
  patterns: string;
  rules: Ignore;
}

/** Rules that hold in one folder; each folder may add its own. */
export class IgnoreRules {
  /** `sets`: innermost first, because the innermost that says anything decides. */
  constructor(private readonly sets: readonly RuleSet[]) {}

  /** Rules for a workspace folder: those of its parents and its own. */
  static async forRoot(root: string): Promise<IgnoreRules> {
    const outer = await rulesOfParents(root);
    // Somebody who asks about an ignored folder means it: then the parents' rules say nothing.
    const start = outer.ignores(root, true) ? new IgnoreRules([]) : outer;
    return start.entering(root);
  }

  /**
   * The rules inside `folder`, which is not ignored: these and its own .gitignore. An outer set may
   * say that it is ignored and have been overruled by an inner one; that set has to learn it, since
   * to its matcher everything below would be ignored as well.
   */
  async entering(folder: string): Promise<IgnoreRules> {
    const own = await readRules(path.join(folder, '.gitignore'), folder);
    const outer = this.sets.map((set) => {
      const relative = relativeTo(set, folder);
      if (relative === null || !set.rules.test(`${relative}/`).ignored) return set;
      // An unescaped ? matches itself too; escaped, the matcher takes it for a backslash and more.
      const escaped = relative.replace(/[\\*[\] ]/g, '\\$&');
      return ruleSet(set.base, `${set.patterns}\n!/${escaped}`);
    });
    return new IgnoreRules(own === null ? outer : [own, ...outer]);
  }

  ignores(absolutePath: string, isFolder: boolean): boolean {
    if (alwaysIgnored.has(path.basename(absolutePath))) return true;
    for (const set of this.sets) {
      const relative = relativeTo(set, absolutePath);
      if (relative === null) continue;
      const { ignored, unignored } = set.rules.test(isFolder ? `${relative}/` : relative);
      if (ignored || unignored) return ignored;
    }
    return false;
  }
}

function ruleSet(base: string, patterns: string): RuleSet {
  const rules = ignore({ ignorecase: ignoreCase, allowRelativePaths: true }).add(patterns);
  return { base, patterns, rules };
}

/** As the set's patterns see the path; null when it is not below their folder. */
function relativeTo({ base }: RuleSet, absolutePath: string): string | null {
  const relative = path.relative(base, absolutePath).split(path.sep).join('/');
  return relative === '' || relative.startsWith('../') ? null : relative;
}

async function rulesOfParents(root: string): Promise<IgnoreRules> {
  const parents: string[] = [];
  for (let folder = root; ; folder = path.dirname(folder)) {
    if (folder !== root) parents.push(folder);
    const gitFolder = await gitFolderOf(folder);
    if (gitFolder !== null) {
      const files = parents.map((parent) => readRules(path.join(parent, '.gitignore'), parent));
      files.push(readRules(path.join(gitFolder, 'info', 'exclude'), folder));
      const sets = (await Promise.all(files)).filter((set) => set !== null);
      return new IgnoreRules(sets);
    }
    if (path.dirname(folder) === folder) return new IgnoreRules([]);
  }
}

/** Where the repository with this root keeps its data; null when it is no repository's root. */
async function gitFolderOf(folder: string): Promise<string | null> {
  const git = path.join(folder, '.git');
  try {
    const found = await stat(git);
    if (found.isDirectory()) return git;
    if (!found.isFile()) return null;
    // Worktrees and submodules: a file that names the folder, which may name a common one.
    const named = /^gitdir: (.+)$/m.exec(await readFile(git, 'utf8'))?.[1];
    if (named === undefined) return null;
    const own = path.resolve(folder, named.trim());
    const common = await readFile(path.join(own, 'commondir'), 'utf8').catch(() => '.');
    return path.resolve(own, common.trim());
  } catch {
    return null;
  }
}

async function readRules(file: string, base: string): Promise<RuleSet | null> {
  try {
    // Like git, which follows no links here: a pattern file comes from the folder it is in.
    const found = await lstat(file);
    if (!found.isFile() || found.size > maxRulesBytes) return null;
    return ruleSet(base, (await readFile(file, 'utf8')).replace(/^\uFEFF/, ''));
  } catch {
    // Missing or unreadable: git goes on without it too.
    return null;
  }
}
