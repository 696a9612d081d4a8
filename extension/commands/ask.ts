import * as vscode from 'vscode';
import type { Asking } from '../chat/asking';
import type { ChatPanel } from '../chat/panel';

/** `Longsight: Ask Workspace…`. A key binding may pass the question as its argument. */
export function askCommand(asking: Asking, panel: ChatPanel) {
  return async (argument?: unknown): Promise<void> => {
    const question =
      typeof argument === 'string'
        ? argument
        : await vscode.window.showInputBox({
            title: 'Longsight: Ask Workspace',
            prompt: 'The whole workspace is read by a model on this machine.',
            placeHolder: 'Where is the retry policy decided?',
            ignoreFocusOut: true,
          });
    if (question === undefined || question.trim() === '') return;
    asking.ask(question);
    await panel.reveal(false);
  };
}
