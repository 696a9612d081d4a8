import * as vscode from 'vscode';
import { resourceRoots, webviewHtml } from './webviewHtml';
import type { FromStats, StatsOfQuestion, ToStats } from './messages';

/** The statistics of one answer, in an editor tab. */
export class StatsView implements vscode.Disposable {
  private panel: vscode.WebviewPanel | null = null;
  private shown: StatsOfQuestion | null = null;

  constructor(private readonly extensionUri: vscode.Uri) {}

  get statsShown(): StatsOfQuestion | null {
    return this.shown;
  }

  /** What the view shows, now and when it is opened next. */
  set(shown: StatsOfQuestion | null): void {
    this.shown = shown;
    this.post();
  }

  open(): void {
    if (this.panel !== null) {
      this.panel.reveal();
      return;
    }
    const panel = vscode.window.createWebviewPanel(
      'longsight.stats',
      'Longsight Stats',
      vscode.ViewColumn.Active,
      { enableScripts: true, localResourceRoots: resourceRoots(this.extensionUri) },
    );
    panel.webview.onDidReceiveMessage((message: FromStats) => {
      if (message.type === 'ready') this.post();
      if (message.type === 'ask') void vscode.commands.executeCommand('longsight.ask');
    });
    panel.onDidDispose(() => (this.panel = null));
    panel.webview.html = webviewHtml(panel.webview, this.extensionUri, 'stats', 'Longsight Stats');
    this.panel = panel;
  }

  dispose(): void {
    this.panel?.dispose();
  }

  private post(): void {
    const message: ToStats = { type: 'stats', shown: this.shown };
    void this.panel?.webview.postMessage(message);
  }
}
