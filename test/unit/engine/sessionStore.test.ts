import assert from 'node:assert/strict';
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {
  deleteSessions,
  discardFromStore,
  listSessions,
  makeRoom,
  sessionFile,
  sessionsFolder,
} from '../../../extension/engine/sessionStore';

describe('engine/sessionStore', () => {
  let root: string;
  let folder: string;
  beforeEach(() => {
    root = mkdtempSync(path.join(os.tmpdir(), 'longsight-store-'));
    folder = path.join(root, 'sessions');
  });
  afterEach(() => rmSync(root, { recursive: true, force: true }));

  const put = async (name: string, bytes: number, ageMs = 0) => {
    await makeRoom(path.join(folder, 'x.session'), { bytes: 0, mostBytes: 0 });
    const file = path.join(folder, name);
    writeFileSync(file, Buffer.alloc(bytes));
    const at = new Date(Date.now() - ageMs);
    utimesSync(file, at, at);
    return file;
  };

  it('lies in the cache of the user', () => {
    assert.equal(sessionsFolder({ XDG_CACHE_HOME: '/c' }), '/c/longsight/sessions');
    const home = path.join(os.homedir(), '.cache/longsight/sessions');
    assert.equal(sessionsFolder({ XDG_CACHE_HOME: 'relative' }), home);
    assert.equal(sessionsFolder({}), path.join(os.homedir(), '.cache/longsight/sessions'));
  });

  it('has one file for a model on a set of folders', () => {
    const file = sessionFile('/c', '/m.gguf', ['/a', '/b']);
    assert.match(file, /^\/c\/[0-9a-f]{32}\.session$/);
    assert.equal(sessionFile('/c', '/m.gguf', ['/b', '/a']), file);
    assert.notEqual(sessionFile('/c', '/n.gguf', ['/a', '/b']), file);
    assert.notEqual(sessionFile('/c', '/m.gguf', ['/a']), file);
  });

  it('makes a folder that only its owner can enter', async () => {
    await put('a.session', 1);
    assert.equal(statSync(folder).mode & 0o777, 0o700);
    assert.deepEqual(await listSessions(path.join(root, 'none')), []);
  });

  it('deletes the oldest others until the new one fits', async () => {
    const old = await put('old.session', 40, 3000);
    const middle = await put('middle.session', 40, 2000);
    const recent = await put('recent.session', 40, 1000);
    const foreign = await put('notes.txt', 1000, 9000);
    assert.equal(await makeRoom(recent, { bytes: 60, mostBytes: 100 }), undefined);
    assert.ok(!existsSync(old) && existsSync(middle) && existsSync(recent) && existsSync(foreign));
    assert.equal(
      await makeRoom(path.join(folder, 'new.session'), { bytes: 100, mostBytes: 100 }),
      undefined,
    );
    assert.deepEqual(readdirSync(folder), ['notes.txt']);
  });

  it('deletes nothing for one that never fits, and nothing without a limit', async () => {
    const other = await put('other.session', 40, 1000);
    const file = path.join(folder, 'new.session');
    assert.match((await makeRoom(file, { bytes: 101, mostBytes: 100 }))!, /101 bytes of 100/);
    assert.equal(await makeRoom(file, { bytes: 101, mostBytes: 0 }), undefined);
    assert.ok(existsSync(other));
  });

  it('leaves the disk some space', async () => {
    const file = path.join(folder, 'new.session');
    assert.match((await makeRoom(file, { bytes: 1e18, mostBytes: 0 }))!, /has only \d+ bytes left/);
  });

  it('removes what interrupted saves of this file left, once they are old', async () => {
    const stale = await put('a.session.0011.partial', 5, 2 * 3_600_000);
    const running = await put('a.session.0022.partial', 5);
    const others = await put('b.session.0033.partial', 5, 2 * 3_600_000);
    await makeRoom(path.join(folder, 'a.session'), { bytes: 1, mostBytes: 0 });
    assert.ok(!existsSync(stale) && existsSync(running) && existsSync(others));
  });

  it('discards what is no session from the store alone', async () => {
    const garbage = await put('a.session', 5);
    const other = await put('notes.md', 5);
    assert.equal(await discardFromStore(garbage, root), false);
    assert.equal(await discardFromStore(other, folder), false);
    assert.ok(existsSync(garbage) && existsSync(other));
    assert.equal(await discardFromStore(garbage, folder), true);
    assert.equal(await discardFromStore(garbage, folder), false);
    assert.ok(!existsSync(garbage));
  });

  it('lists and deletes sessions, and nothing else', async () => {
    await put('a.session', 10, 2000);
    const latest = await put('b.session', 20, 1000);
    await put('b.session.0011.partial', 5);
    await put('notes.txt', 5);
    const sessions = await listSessions(folder);
    assert.deepEqual(
      sessions.map(({ bytes }) => bytes),
      [20, 10],
    );
    assert.equal(sessions[0]!.file, latest);
    assert.equal(await deleteSessions(folder), 30);
    assert.deepEqual(readdirSync(folder), ['notes.txt']);
  });
});
