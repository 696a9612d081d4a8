/** What the chat view can ask for, done in the editor. */
import * as vscode from 'vscode';
import type { StatsOfQuestion } from '../status/messages';
import type { Asking } from './asking';
import type { FromChat, Remedy } from './messages';
import { openCitation } from './openCitation';

export interface ActionTargets {
  asking: Asking;
  selectModel(): Promise<string | undefined>;
  showStats(shown: StatsOfQuestion): void;
  showLog(): void;
}

export async function perform(message: FromChat, targets: ActionTargets): Promise<void> {
  const { asking } = targets;
  switch (message.type) {
    case 'ask':
      asking.ask(message.question);
      return;
    case 'stop':
      asking.stop(message.id);
      return;
    case 'choose':
      asking.choose(message.id, message.choice);
      return;
    case 'selectModel':
      await targets.selectModel();
      return;
    case 'openFolder':
      await vscode.commands.executeCommand('vscode.openFolder');
      return;
    case 'copy': {
      const answer = asking.conversation.get(message.id)?.answer;
      if (answer !== undefined) await copy(answer);
      return;
    }
    case 'showStats': {
      const entry = asking.conversation.get(message.id);
      if (entry?.stats) targets.showStats({ question: entry.question, stats: entry.stats });
      return;
    }
    case 'openCitation': {
      const citation = asking.conversation.get(message.id)?.citations[message.index];
      if (citation === undefined) return;
      const opened = await openCitation(citation).catch(() => false);
      if (!opened) {
        void vscode.window.showWarningMessage(
          `Longsight: ${citation.path} cannot be opened. It may have been moved since it was read.`,
        );
      }
      return;
    }
    case 'remedy':
      await remedy(message.id, message.remedy, targets);
      return;
    case 'ready':
      return;
  }
}

async function remedy(id: number, chosen: Remedy, targets: ActionTargets): Promise<void> {
  switch (chosen) {
    case 'askAgain':
      targets.asking.askAgain(id);
      return;
    case 'selectModel':
      if ((await targets.selectModel()) !== undefined) targets.asking.askAgain(id);
      return;
    case 'openSettings':
      await vscode.commands.executeCommand(
        'workbench.action.openSettings',
        '@ext:longsight.longsight',
      );
      return;
    case 'openFolder':
      await vscode.commands.executeCommand('vscode.openFolder');
      return;
    case 'showLog':
      targets.showLog();
      return;
  }
}

async function copy(text: string): Promise<void> {
  await vscode.env.clipboard.writeText(text);
  vscode.window.setStatusBarMessage('$(check) Copied', 2000);
}
