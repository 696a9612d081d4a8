/** The rules that keep the rooms apart, proven on small files that break them. */
import assert from 'node:assert/strict';
import path from 'node:path';
import { ESLint } from 'eslint';

const root = path.resolve(__dirname, '../../..');

const boundaryRules = [
  'no-restricted-imports',
  '@typescript-eslint/no-restricted-imports',
  'no-restricted-syntax',
];

describe('boundaries', function () {
  this.timeout(60_000);

  // Types are checked elsewhere; files that do not exist have none.
  const eslint = new ESLint({
    cwd: root,
    overrideConfig: {
      languageOptions: { parserOptions: { project: null } },
    },
    ruleFilter: ({ ruleId }) => boundaryRules.includes(ruleId),
  });

  /** Messages for `code`, if it stood in `file`. */
  async function complaints(file: string, code: string): Promise<string[]> {
    const [result] = await eslint.lintText(code, { filePath: path.join(root, 'extension', file) });
    assert.ok(result, `${file} is not linted`);
    assert.equal(result.fatalErrorCount, 0, JSON.stringify(result.messages));
    return result.messages.map((message) => `${message.ruleId ?? ''}: ${message.message}`);
  }

  async function forbids(file: string, code: string): Promise<void> {
    assert.notDeepEqual(await complaints(file, code), [], `${file}: ${code}`);
  }

  async function allows(file: string, code: string): Promise<void> {
    assert.deepEqual(await complaints(file, code), [], `${file}: ${code}`);
  }

  it('keep vscode out of everything that also runs in a terminal', async () => {
    const code = "import * as vscode from 'vscode';\nexport const x = vscode;\n";
    for (const room of ['workspace', 'prompt', 'models', 'engine', 'cli', 'webview']) {
      await forbids(`${room}/bad.ts`, code);
      await forbids(`${room}/bad.ts`, "export const x = import('vscode');\n");
    }
    await forbids('engine/worker.ts', code);
    await forbids('engine/protocol.ts', code);
    await forbids('chat/conversation.ts', code);
    for (const file of [
      'extension.ts',
      'config.ts',
      'chat/good.ts',
      'status/good.ts',
      'commands/good.ts',
    ])
      await allows(file, code);
  });

  it('keep the addon in the engine process', async () => {
    const byRequire =
      "import { createRequire } from 'node:module';\nexport const x = createRequire(__filename);\n";
    const byName = "export const file = 'longsight.node';\n";
    const byProcess = "process.dlopen(module, 'x');\n";
    const asValue = "import { addon } from '../engine/addon';\nexport const x = addon;\n";
    const byLoader =
      "import { loadAddon } from '../engine/loadAddon';\nexport const x = loadAddon;\n";
    for (const file of [
      'extension.ts',
      'engine/client.ts',
      'chat/bad.ts',
      'cli/main.ts',
      'workspace/bad.ts',
    ])
      for (const code of [byRequire, byName, byProcess, asValue, byLoader])
        await forbids(file, code);
    for (const code of [
      byRequire,
      byName,
      "import { loadAddon } from './loadAddon';\nexport const x = loadAddon;\n",
    ])
      await allows('engine/worker.ts', code);
    await allows(
      'engine/jobs.ts',
      "import type { Addon } from './addon';\nexport type X = Addon;\n",
    );
  });

  it('let nothing import what comes later', async () => {
    const imports = (from: string): string => `import { x } from '${from}';\nexport const y = x;\n`;
    const later: [string, string][] = [
      ['workspace/bad.ts', '../prompt/layout'],
      ['workspace/bad.ts', '../engine/client'],
      ['prompt/bad.ts', '../engine/client'],
      ['models/bad.ts', '../chat/asking'],
      ['engine/bad.ts', '../chat/conversation'],
      ['engine/bad.ts', '../cli/run'],
      ['engine/bad.ts', '../status/format'],
      ['status/bad.ts', '../commands/ask'],
      ['chat/bad.ts', '../commands/ask'],
      ['cli/bad.ts', '../chat/asking'],
      ['webview/bad.ts', '../engine/client'],
      ['webview/bad.ts', '../chat/panel'],
    ];
    for (const [file, from] of later) await forbids(file, imports(from));
    const earlier: [string, string][] = [
      ['workspace/good.ts', '../engine/protocol'],
      ['prompt/good.ts', '../workspace/snapshot'],
      ['engine/good.ts', '../prompt/layout'],
      ['chat/good.ts', '../engine/client'],
      ['commands/good.ts', '../chat/asking'],
      ['cli/good.ts', '../engine/client'],
      ['webview/good.ts', '../chat/messages'],
    ];
    for (const [file, from] of earlier) await allows(file, imports(from));
  });
});
