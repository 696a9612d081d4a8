import * as vscode from 'vscode';
import { resourceRoots, webviewHtml } from '../status/webviewHtml';
import type { Change, Entry } from './conversation';
import { parseFromChat, type FromChat, type Surroundings, type ToChat } from './messages';

export interface ChatSource {
  entries(): readonly Entry[];
  surroundings(): Surroundings;
  onMessage(message: FromChat): void;
}

/**
 * The chat view. It holds no state of its own: whenever its document is made anew (moved to another
 * side bar, hidden and shown) it says `ready` and gets the whole transcript. Disposing it stops
 * nothing.
 */
export class ChatPanel implements vscode.WebviewViewProvider {
  static readonly viewId = 'longsight.chat';
  private view: vscode.WebviewView | null = null;
  private ready = false;
  private focusWhenReady = false;

  constructor(
    private readonly extensionUri: vscode.Uri,
    private readonly source: ChatSource,
  ) {}

  resolveWebviewView(view: vscode.WebviewView): void {
    this.view = view;
    this.ready = false;
    view.webview.options = {
      enableScripts: true,
      localResourceRoots: resourceRoots(this.extensionUri),
    };
    view.webview.onDidReceiveMessage((value: unknown) => {
      const message = parseFromChat(value);
      if (message === undefined) return;
      if (message.type === 'ready') this.replay();
      else this.source.onMessage(message);
    });
    view.onDidDispose(() => {
      if (this.view === view) this.view = null;
    });
    view.webview.html = webviewHtml(view.webview, this.extensionUri, 'chat', 'Longsight');
  }

  /** Shows the view; with `focus` the cursor goes to the question box. */
  async reveal(focus: boolean): Promise<void> {
    this.focusWhenReady = focus && !this.ready;
    if (this.view === null) await vscode.commands.executeCommand(`${ChatPanel.viewId}.focus`);
    else this.view.show(!focus);
    if (focus && this.ready) this.post({ type: 'focusInput' });
  }

  changed(entry: Entry, change: Change): void {
    switch (change.kind) {
      case 'append':
        this.post({ type: 'append', id: entry.id, text: change.text });
        break;
      case 'thought':
        this.post({
          type: 'thought',
          id: entry.id,
          text: change.text,
          elapsedMs: change.elapsedMs,
        });
        break;
      case 'entry':
        this.post({ type: 'entry', entry });
        break;
      case 'none':
        break;
    }
  }

  /** Sends everything again. */
  replay(): void {
    this.ready = true;
    this.post({
      type: 'transcript',
      entries: this.source.entries(),
      surroundings: this.source.surroundings(),
    });
    if (this.focusWhenReady) this.post({ type: 'focusInput' });
    this.focusWhenReady = false;
  }

  surroundingsChanged(): void {
    this.post({ type: 'surroundings', surroundings: this.source.surroundings() });
  }

  private post(message: ToChat): void {
    // A view that is not there, or not ready yet, asks for the transcript when it is.
    if (this.ready) void this.view?.webview.postMessage(message);
  }
}
