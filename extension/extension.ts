/** Builds the parts and connects them, nothing else. */
import path from 'node:path';
import * as vscode from 'vscode';
import { perform } from './chat/actions';
import { Asking } from './chat/asking';
import { Conversation } from './chat/conversation';
import type { FromChat } from './chat/messages';
import { ChatPanel } from './chat/panel';
import { openFolders, unsavedTexts } from './chat/workspaceInput';
import { askCommand } from './commands/ask';
import { deleteSavedSessionsCommand } from './commands/deleteSavedSessions';
import { modelName } from './commands/modelItems';
import { newChatCommand } from './commands/newChat';
import { selectModelCommand } from './commands/selectModel';
import { showLogCommand } from './commands/showLog';
import { showStatsCommand } from './commands/showStats';
import { stopCommand } from './commands/stop';
import { readGpuIdleMs, readModelSettings, readSettings } from './config';
import { Engine } from './engine/client';
import { IdleSaver } from './engine/idleSaver';
import type { Event } from './engine/protocol';
import { findModels } from './models/catalog';
import { StatsView } from './status/statsView';
import { StatusBar } from './status/statusBar';

/** For tests and measurements: what happened, and the chat view's own messages. */
export interface LongsightApi {
  /** Every event of the engine, with the id of its question. */
  readonly onEvent: vscode.Event<{ id: number; event: Event }>;
  readonly conversation: Conversation;
  /** Process id of the engine process while there is one. */
  enginePid(): number | undefined;
  /** Does what the chat view would be asking for. */
  perform(message: FromChat): Promise<void>;
}

let engine: Engine | null = null;

export function activate(context: vscode.ExtensionContext): LongsightApi {
  const log = vscode.window.createOutputChannel('Longsight', { log: true });
  engine = new Engine({
    workerPath: path.join(context.extensionPath, 'dist', 'worker.js'),
    gpuIdleMs: () => readGpuIdleMs(read),
    log: (level, text) => log[level](text),
  });
  const events = new vscode.EventEmitter<{ id: number; event: Event }>();
  const conversation = new Conversation();
  const statusBar = new StatusBar(conversation);
  const statsView = new StatsView(context.extensionUri);
  const selectModel = selectModelCommand(() => readModelSettings(read), findModels);

  const saver = new IdleSaver(engine, (text) => log.warn(text));
  const asking = new Asking(
    conversation,
    engine,
    saver,
    {
      settings: () => readSettings(read),
      folders: openFolders,
      unsaved: unsavedTexts,
      chooseModel: selectModel,
      log: (text) => log.error(text),
    },
    {
      onChange: (entry, change) => {
        panel.changed(entry, change);
        if (change.kind !== 'entry') return;
        statusBar.update(conversation);
        if (entry.stats) statsView.set({ question: entry.question, stats: entry.stats });
      },
      onEvent: (entry, event) => events.fire({ id: entry.id, event }),
      onCleared: () => {
        panel.replay();
        statusBar.update(conversation);
      },
    },
  );
  const showStats = showStatsCommand(statsView);
  const showLog = showLogCommand(log);
  const act = (message: FromChat) =>
    perform(message, {
      asking,
      selectModel,
      showLog,
      showStats: (shown) => {
        statsView.set(shown);
        showStats();
      },
    });
  const panel = new ChatPanel(context.extensionUri, {
    entries: () => conversation.entries,
    surroundings: () => ({
      modelName: modelName(readModelSettings(read).modelPath),
      folders: openFolders().map((folder) => folder.name),
    }),
    onMessage: (message) => void act(message).catch((error: unknown) => log.error(String(error))),
  });

  const register = vscode.commands.registerCommand;
  context.subscriptions.push(
    log,
    events,
    statusBar,
    statsView,
    vscode.window.registerWebviewViewProvider(ChatPanel.viewId, panel),
    register('longsight.ask', askCommand(asking, panel)),
    register('longsight.stop', stopCommand(asking)),
    register('longsight.newChat', newChatCommand(asking, panel)),
    register('longsight.selectModel', selectModel),
    register('longsight.showStats', showStats),
    register('longsight.showLog', showLog),
    register('longsight.deleteSavedSessions', deleteSavedSessionsCommand()),
    vscode.workspace.onDidChangeConfiguration((change) => {
      if (change.affectsConfiguration('longsight.model')) panel.surroundingsChanged();
    }),
    vscode.workspace.onDidChangeWorkspaceFolders(() => panel.surroundingsChanged()),
  );
  return {
    onEvent: events.event,
    conversation,
    enginePid: () => engine?.pid,
    perform: act,
  };
}

/** The value of a setting that somebody has set, in whatever way the editor combines the places. */
function read(key: string): unknown {
  const configuration = vscode.workspace.getConfiguration('longsight');
  const { globalValue, workspaceValue, workspaceFolderValue } = configuration.inspect(key) ?? {};
  const isSet = [globalValue, workspaceValue, workspaceFolderValue].some(
    (value) => value !== undefined,
  );
  return isSet ? configuration.get<unknown>(key) : undefined;
}

export async function deactivate(): Promise<void> {
  await engine?.dispose();
  engine = null;
}
