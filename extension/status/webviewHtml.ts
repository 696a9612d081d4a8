/** The document of a webview: its script and style sheets, and nothing else may load. */
import { randomBytes } from 'node:crypto';
import * as vscode from 'vscode';

export type WebviewName = 'chat' | 'stats';

/** Where webviews may load from. */
export function resourceRoots(extensionUri: vscode.Uri): vscode.Uri[] {
  return [
    vscode.Uri.joinPath(extensionUri, 'dist', 'webview'),
    vscode.Uri.joinPath(extensionUri, 'media'),
  ];
}

export function webviewHtml(
  webview: vscode.Webview,
  extensionUri: vscode.Uri,
  name: WebviewName,
  title: string,
): string {
  const nonce = randomBytes(16).toString('base64');
  const at = (...segments: string[]) =>
    webview.asWebviewUri(vscode.Uri.joinPath(extensionUri, ...segments)).toString();
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none'; form-action 'none'; style-src ${webview.cspSource}; script-src 'nonce-${nonce}';">
<link rel="stylesheet" href="${at('media', 'common.css')}">
<link rel="stylesheet" href="${at('media', `${name}.css`)}">
<title>${title}</title>
</head>
<body>
<main id="root"></main>
<script nonce="${nonce}" src="${at('dist', 'webview', `${name}.js`)}"></script>
</body>
</html>`;
}
