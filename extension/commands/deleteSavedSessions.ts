/** `Longsight: Delete Saved Sessions`. */
import * as vscode from 'vscode';
import { deleteSessions, listSessions, sessionsFolder } from '../engine/sessionStore';
import { formatBytes } from '../status/format';

export function deleteSavedSessionsCommand(): () => Promise<void> {
  return async () => {
    const folder = sessionsFolder();
    const sessions = await listSessions(folder);
    if (sessions.length === 0) {
      void vscode.window.showInformationMessage(`There are no saved sessions in ${folder}.`);
      return;
    }
    const bytes = sessions.reduce((sum, session) => sum + session.bytes, 0);
    const count = sessions.length === 1 ? '1 saved session' : `${sessions.length} saved sessions`;
    const chosen = await vscode.window.showWarningMessage(
      `Delete ${count}, ${formatBytes(bytes)}?`,
      { modal: true, detail: `${folder}\nWorkspaces are read anew at their next question.` },
      'Delete',
    );
    if (chosen !== 'Delete') return;
    const freed = await deleteSessions(folder);
    void vscode.window.showInformationMessage(`Freed ${formatBytes(freed)}.`);
  };
}
