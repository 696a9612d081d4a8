import * as vscode from 'vscode';
import type { Conversation } from '../chat/conversation';
import { statusText } from './statusText';

/** The one status bar item, and the context key for what is enabled while a question runs. */
export class StatusBar implements vscode.Disposable {
  private readonly item: vscode.StatusBarItem;
  private shown = '';
  private running = false;

  constructor(conversation: Conversation) {
    this.item = vscode.window.createStatusBarItem(
      'longsight.status',
      vscode.StatusBarAlignment.Left,
      0,
    );
    this.item.name = 'Longsight';
    this.update(conversation);
    this.item.show();
  }

  update(conversation: Conversation): void {
    const running = conversation.open.length > 0;
    if (running !== this.running) {
      this.running = running;
      void vscode.commands.executeCommand('setContext', 'longsight.running', running);
    }
    const status = statusText(conversation.entries);
    const key = JSON.stringify(status);
    // Progress comes often and mostly says what is shown already.
    if (key === this.shown) return;
    this.shown = key;
    this.item.text = status.text;
    this.item.command = status.opens === 'chat' ? 'longsight.chat.focus' : 'longsight.showStats';
    const tooltip = new vscode.MarkdownString();
    status.tooltip.forEach((line, index) => {
      if (index > 0) tooltip.appendMarkdown('\n\n');
      tooltip.appendText(line);
    });
    this.item.tooltip = tooltip;
    this.item.accessibilityInformation = { label: status.label, role: 'button' };
  }

  dispose(): void {
    this.item.dispose();
  }
}
