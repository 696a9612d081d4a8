/** What the suites inside the editor share: the extension under test and a workspace to ask about. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import * as vscode from 'vscode';
import type { LongsightApi } from '../../extension/extension';
import type { Entry } from '../../extension/chat/conversation';
import type { Event } from '../../extension/engine/protocol';

export const extensionId = 'longsight.longsight';

export async function longsight(): Promise<LongsightApi> {
  const extension = vscode.extensions.getExtension<LongsightApi>(extensionId);
  assert.ok(extension, `${extensionId} is there`);
  return extension.activate();
}

/** The workspace is a copy: what is not needed is removed, so that a prefill takes seconds. */
export function workspaceFolder(): string {
  const folder = vscode.workspace.workspaceFolders?.[0]?.uri.fsPath;
  assert.ok(folder, 'a folder is open');
  return folder;
}

const kept = ['README.md', 'package.json', 'src/backoff.js', 'src/heap.js'];

/** Returns what undoes it. */
export function shrinkWorkspace(): () => void {
  const folder = workspaceFolder();
  const removed = new Map<string, Buffer>();
  for (const entry of fs.readdirSync(folder, { recursive: true, withFileTypes: true })) {
    const file = path.join(entry.parentPath, entry.name);
    if (!entry.isFile() || kept.includes(path.relative(folder, file))) continue;
    removed.set(file, fs.readFileSync(file));
    fs.rmSync(file);
  }
  return () => removed.forEach((content, file) => fs.writeFileSync(file, content));
}

/** Undefined removes the setting. */
export async function setSetting(key: string, value: unknown): Promise<void> {
  await vscode.workspace
    .getConfiguration('longsight')
    .update(key, value, vscode.ConfigurationTarget.Global);
}

export function setting(key: string): unknown {
  return vscode.workspace.getConfiguration('longsight').get(key);
}

type Falsy = undefined | null | false | '' | 0;

/** Waits until `check` gives something. The limit is for a machine that does other things, too. */
export async function until<T>(
  what: string,
  check: () => T | Falsy | Promise<T | Falsy>,
  timeoutMs = 200_000,
): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const value = await check();
    if (value) return value;
    assert.ok(performance.now() < deadline, `${what}: not within ${timeoutMs / 1000} s`);
    await pause(25);
  }
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

export interface Seen {
  event: Event;
  /** When it arrived, on the test's own monotonic clock. */
  atMs: number;
}

/** One question, asked by command, with all that was seen of it. */
export class Question {
  readonly seen: Seen[] = [];
  submittedMs = 0;
  private readonly subscription: vscode.Disposable;
  private id = 0;

  private constructor(private readonly api: LongsightApi) {
    this.subscription = api.onEvent(({ id, event }) => {
      if (id === this.id || this.id === 0) this.seen.push({ event, atMs: performance.now() });
    });
  }

  static async ask(api: LongsightApi, text: string): Promise<Question> {
    const question = new Question(api);
    const before = new Set(api.conversation.entries.map((entry) => entry.id));
    question.submittedMs = performance.now();
    void vscode.commands.executeCommand('longsight.ask', text);
    const entry = await until('the question is in the conversation', () =>
      api.conversation.entries.find((each) => !before.has(each.id)),
    );
    question.id = entry.id;
    return question;
  }

  get entry(): Entry {
    const entry = this.api.conversation.get(this.id);
    assert.ok(entry, `entry ${this.id}`);
    return entry;
  }

  events<T extends Event['type']>(type: T): (Seen & { event: Extract<Event, { type: T }> })[] {
    return this.seen.filter((each) => each.event.type === type) as (Seen & {
      event: Extract<Event, { type: T }>;
    })[];
  }

  /** The first event that fits. */
  async event<T extends Event['type']>(
    type: T,
    fits: (event: Extract<Event, { type: T }>) => boolean = () => true,
  ): Promise<Extract<Event, { type: T }>> {
    return until(`event ${type}`, () => {
      assert.ok(!this.entry.error, this.entry.error?.message);
      return this.events(type).find((each) => fits(each.event))?.event;
    });
  }

  /** The entry when it is over, however it ended. */
  async end(): Promise<Entry> {
    await until(
      'the question has ended',
      () => !['running', 'confirming'].includes(this.entry.state),
    );
    this.subscription.dispose();
    return this.entry;
  }

  /** The entry when it is answered. */
  async answer(): Promise<Entry & { stats: NonNullable<Entry['stats']> }> {
    const entry = await this.end();
    assert.equal(entry.state, 'done', entry.error?.message);
    assert.ok(entry.stats);
    return { ...entry, stats: entry.stats };
  }
}
