import path from 'node:path';
import * as vscode from 'vscode';
import type { WorkspaceFolder } from '../engine/protocol';
import { uniqueNames } from './uniqueNames';

/** All folders on disk, each with a name of its own. */
export function openFolders(): WorkspaceFolder[] {
  const folders = (vscode.workspace.workspaceFolders ?? []).filter(
    (folder) => folder.uri.scheme === 'file',
  );
  const names = uniqueNames(folders.map((folder) => folder.name));
  return folders.map((folder, index) => ({
    name: names[index] ?? folder.name,
    path: path.normalize(folder.uri.fsPath),
  }));
}

/** What the user sees in an editor but has not saved, by absolute path. */
export function unsavedTexts(): Record<string, string> {
  const texts: Record<string, string> = {};
  for (const document of vscode.workspace.textDocuments) {
    if (!document.isDirty || document.uri.scheme !== 'file') continue;
    if (vscode.workspace.getWorkspaceFolder(document.uri) === undefined) continue;
    texts[path.normalize(document.uri.fsPath)] = document.getText();
  }
  return texts;
}
