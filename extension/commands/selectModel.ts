import * as vscode from 'vscode';
import type { Model } from '../models/catalog';
import { modelItems } from './modelItems';

export interface ModelSettings {
  modelPath: string;
  modelsFolder: string;
}

export type FindModels = (modelsFolder: string) => Promise<Model[]>;

/**
 * `Longsight: Select Model…`: everything that was found on this machine, and Browse. Saves the
 * choice and returns its path; undefined when nothing was chosen.
 */
export function selectModelCommand(read: () => ModelSettings, find: FindModels) {
  return async (): Promise<string | undefined> => {
    const settings = read();
    const pick = vscode.window.createQuickPick<
      vscode.QuickPickItem & { path?: string; browse?: true }
    >();
    pick.title = 'Longsight: Select Model';
    pick.placeholder = 'Looking for GGUF files…';
    pick.matchOnDescription = true;
    pick.matchOnDetail = true;
    pick.ignoreFocusOut = true;
    pick.busy = true;
    const accepted = new Promise<{ path?: string; browse?: true } | undefined>((resolve) => {
      pick.onDidAccept(() => {
        const [item] = pick.selectedItems;
        if (item === undefined) return;
        resolve(item);
        pick.hide();
      });
      pick.onDidHide(() => resolve(undefined));
    });
    pick.show();
    void find(settings.modelsFolder)
      .catch((error: unknown) => {
        void vscode.window.showErrorMessage(`Longsight cannot list models: ${String(error)}`);
        return [];
      })
      .then((found) => {
        pick.busy = false;
        pick.placeholder =
          found.length === 0 && settings.modelPath === ''
            ? 'No GGUF file was found: browse for one'
            : 'Model that answers';
        pick.items = toQuickPick(found, settings.modelPath);
        const current = pick.items.find((item) => item.path === settings.modelPath);
        if (current !== undefined) pick.activeItems = [current];
      });
    const choice = await accepted;
    pick.dispose();
    const path = choice?.browse === true ? await browse(settings) : choice?.path;
    if (path === undefined) return undefined;
    await vscode.workspace
      .getConfiguration('longsight')
      .update('model', path, vscode.ConfigurationTarget.Global);
    return path;
  };
}

function toQuickPick(
  found: readonly Model[],
  current: string,
): (vscode.QuickPickItem & { path?: string; browse?: true })[] {
  const items = modelItems(found, current).map((item) =>
    item.kind === 'source'
      ? { label: item.label, kind: vscode.QuickPickItemKind.Separator }
      : {
          label: item.label,
          description: item.description,
          detail: item.path,
          path: item.path,
          iconPath: new vscode.ThemeIcon(
            item.current ? 'check' : item.usable ? 'file-binary' : 'warning',
          ),
        },
  );
  return [
    ...items,
    { label: '', kind: vscode.QuickPickItemKind.Separator },
    {
      label: 'Browse…',
      description: 'Choose a GGUF file',
      alwaysShow: true,
      browse: true,
      iconPath: new vscode.ThemeIcon('folder-opened'),
    },
  ];
}

async function browse(settings: ModelSettings): Promise<string | undefined> {
  const start = settings.modelPath || settings.modelsFolder;
  const chosen = await vscode.window.showOpenDialog({
    title: 'Select a GGUF model',
    openLabel: 'Use This Model',
    canSelectMany: false,
    filters: { 'GGUF models': ['gguf'], 'All files': ['*'] },
    ...(start === '' ? {} : { defaultUri: vscode.Uri.file(start) }),
  });
  return chosen?.[0]?.fsPath;
}
