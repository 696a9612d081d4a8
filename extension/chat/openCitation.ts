import path from 'node:path';
import * as vscode from 'vscode';
import type { Citation } from '../engine/protocol';

/** Opens the cited file and selects the cited lines. False when it cannot be shown. */
export async function openCitation(citation: Citation): Promise<boolean> {
  if (citation.status !== 'verified' || !path.isAbsolute(citation.absolutePath)) return false;
  const uri = vscode.Uri.file(citation.absolutePath);
  // Answers may only lead into the workspace they were made from.
  if (vscode.workspace.getWorkspaceFolder(uri) === undefined) return false;
  const document = await vscode.workspace.openTextDocument(uri);
  const last = document.lineAt(Math.min(citation.endLine, document.lineCount) - 1);
  const range = document.validateRange(
    new vscode.Range(citation.startLine - 1, 0, last.lineNumber, last.text.length),
  );
  const editor = await vscode.window.showTextDocument(document, { preview: true });
  editor.selection = new vscode.Selection(range.start, range.end);
  editor.revealRange(range, vscode.TextEditorRevealType.InCenterIfOutsideViewport);
  return true;
}
