/** Commands, citations and the view, without the engine. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import * as vscode from 'vscode';
import type { LongsightApi } from '../../extension/extension';
import type { Citation, Event } from '../../extension/engine/protocol';
import { exampleStats } from '../unit/chat/examples';
import { extensionId, longsight, until, workspaceFolder } from './longsight';

describe('commands and views', () => {
  let api: LongsightApi;
  before(async () => (api = await longsight()));

  /** An answered question, as if the engine had sent it. */
  function answered(citations: Citation[]) {
    const { id } = api.conversation.begin('Where?');
    const event = {
      sessionId: '',
      requestId: '',
      type: 'result',
      result: {
        answer: 'There.',
        thinking: '',
        citations,
        citationSpans: citations.map(() => ({ start: 0, end: 0 })),
        files: { full: 1, path: 0, out: 0 },
        stopReason: 'end',
        stats: exampleStats(),
      },
    } as Event;
    api.conversation.apply(id, event);
    return id;
  }

  it('registers every command that package.json names', async () => {
    const extension = vscode.extensions.getExtension(extensionId);
    const { contributes } = extension?.packageJSON as {
      contributes: { commands: { command: string }[] };
    };
    const registered = await vscode.commands.getCommands(true);
    for (const { command } of contributes.commands)
      assert.ok(registered.includes(command), command);
  });

  it('opens a cited file at the cited lines', async () => {
    const file = path.join(workspaceFolder(), 'src', 'backoff.js');
    const lines = fs.readFileSync(file, 'utf8').split('\n');
    const citation: Citation = {
      path: 'src/backoff.js',
      quote: lines[4] ?? '',
      startLine: 5,
      endLine: 6,
      status: 'verified',
      absolutePath: file,
    };
    await api.perform({ type: 'openCitation', id: answered([citation]), index: 0 });
    const editor = vscode.window.activeTextEditor;
    assert.equal(editor?.document.uri.fsPath, file);
    assert.equal(editor.selection.start.line, 4);
    assert.equal(editor.selection.end.line, 5);
    assert.equal(editor.document.getText(editor.selection), lines.slice(4, 6).join('\n'));
    await until('the lines are visible', () =>
      editor.visibleRanges.some((range) => range.contains(editor.selection.start)),
    );
  });

  it('opens nothing that was not verified or lies outside the workspace', async () => {
    await vscode.commands.executeCommand('workbench.action.closeAllEditors');
    const citation: Citation = {
      path: 'README.md',
      quote: '',
      startLine: 1,
      endLine: 1,
      status: 'ambiguous',
      absolutePath: path.join(workspaceFolder(), 'README.md'),
    };
    const outside: Citation = { ...citation, status: 'verified', absolutePath: '/etc/passwd' };
    const id = answered([citation, outside]);
    for (const index of [0, 1, 2]) await api.perform({ type: 'openCitation', id, index });
    assert.equal(vscode.window.activeTextEditor, undefined);
  });

  it('copies an answer', async () => {
    await api.perform({ type: 'copy', id: answered([]) });
    await until(
      'the clipboard has it',
      async () => (await vscode.env.clipboard.readText()) === 'There.',
    );
  });

  it('shows statistics in a tab, and once only', async () => {
    await api.perform({ type: 'showStats', id: answered([]) });
    await vscode.commands.executeCommand('longsight.showStats');
    const tabs = await until('the tab is open', () => {
      const found = vscode.window.tabGroups.all
        .flatMap((group) => group.tabs)
        .filter((tab) => tab.label === 'Longsight Stats');
      return found.length > 0 ? found : undefined;
    });
    assert.equal(tabs.length, 1);
    await vscode.commands.executeCommand('workbench.action.closeAllEditors');
  });

  it('starts a new chat', async () => {
    answered([]);
    await vscode.commands.executeCommand('longsight.newChat');
    assert.deepEqual(api.conversation.entries, []);
  });
});
