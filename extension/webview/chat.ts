/** The chat view: shows the transcript that the host sends, and says what the user wants. */
import { isOpen, isThinking, type Entry } from '../chat/conversation';
import type { FromChat, Surroundings, ToChat } from '../chat/messages';
import { button, el, setText } from './dom';
import { EntryView } from './entryView';

interface Saved {
  draft: string;
}

const api = acquireVsCodeApi<Saved>();
const send = (message: FromChat): void => api.postMessage(message);

const views = new Map<number, EntryView>();
let surroundings: Surroundings = { modelName: '', folders: [] };

const empty = el('div', { class: 'empty' });
const transcript = el('div', { class: 'transcript', role: 'log', 'aria-label': 'Conversation' });
const scroller = el('div', { class: 'scroller', tabindex: '-1' }, empty, transcript);
const announcer = el('div', { class: 'visually-hidden', role: 'status', 'aria-live': 'polite' });
const input = el('textarea', {
  class: 'question-input',
  rows: '1',
  'aria-label': 'Question about the workspace',
  'aria-describedby': 'input-hint',
  placeholder: 'Ask about the whole workspace',
});
const sendButton = button('Ask', 'primary', ask, { title: 'Ask (Enter)' });
const stopButton = button('Stop', 'secondary', stop, { title: 'Stop (Escape)' });
const modelButton = button('', 'link model', () => send({ type: 'selectModel' }));
const composer = el(
  'form',
  { class: 'composer' },
  input,
  el(
    'div',
    { class: 'composer-row' },
    modelButton,
    el(
      'span',
      { class: 'visually-hidden', id: 'input-hint' },
      'Enter asks, Shift+Enter starts a new line, Escape stops.',
    ),
    stopButton,
    sendButton,
  ),
);
document.getElementById('root')?.append(scroller, announcer, composer);

function ask(): void {
  const question = input.value.trim();
  if (question === '') return;
  input.value = '';
  draftChanged();
  send({ type: 'ask', question });
  stickToEnd = true;
}

function stop(): void {
  for (const view of views.values()) {
    if (isOpen(view.entry)) send({ type: 'stop', id: view.entry.id });
  }
}

function draftChanged(): void {
  api.setState({ draft: input.value });
  input.style.height = 'auto';
  input.style.height = `${Math.min(input.scrollHeight + 2, 200)}px`;
  sendButton.disabled = input.value.trim() === '';
}

// ------------------------------------------------------------------ scrolling

/** The user is at the end and stays there; whoever scrolled up is left alone. */
let stickToEnd = true;
scroller.addEventListener('scroll', () => {
  stickToEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 24;
});
function keepPlace(): void {
  if (stickToEnd) scroller.scrollTop = scroller.scrollHeight;
}
new ResizeObserver(keepPlace).observe(scroller);

// ------------------------------------------------------------------ drawing

const dirty = new Set<EntryView>();
let scheduled = false;

/** Tokens arrive faster than frames: an entry is drawn at most once a frame. */
function draw(view: EntryView): void {
  dirty.add(view);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    for (const entry of dirty) entry.draw();
    dirty.clear();
    keepPlace();
  });
}

function show(entry: Entry): void {
  let view = views.get(entry.id);
  const before = view?.entry;
  if (view === undefined) {
    view = new EntryView(entry, send);
    views.set(entry.id, view);
    transcript.append(view.element);
  }
  view.entry = entry;
  draw(view);
  if (before?.state !== entry.state) announce(entry);
  else if (isThinking(entry) && !isThinking(before)) setText(announcer, 'Thinking.');
  updateControls();
}

function announce(entry: Entry): void {
  const said: Partial<Record<Entry['state'], string>> = {
    running: 'Reading the workspace.',
    confirming: 'The prefill is long. Choose Start, Fewer Files or Cancel.',
    done: 'The answer is complete.',
    stopped: 'Stopped.',
    failed: entry.error?.message ?? 'Failed.',
  };
  setText(announcer, said[entry.state] ?? '');
}

function updateControls(): void {
  const open = [...views.values()].some((view) => isOpen(view.entry));
  stopButton.hidden = !open;
  empty.hidden = views.size > 0;
  const { modelName, folders } = surroundings;
  setText(modelButton, modelName === '' ? 'Select Model…' : modelName);
  modelButton.title =
    modelName === '' ? 'No model is chosen yet' : `Model: ${modelName}. Click to change`;
  if (empty.hidden) return;
  empty.replaceChildren(
    el('h2', {}, 'Ask the whole workspace'),
    ...(folders.length === 0
      ? [
          el('p', {}, 'Open a folder first: its files are what the model reads.'),
          el(
            'div',
            { class: 'buttons' },
            button('Open Folder…', 'primary', () => send({ type: 'openFolder' })),
          ),
        ]
      : invitation(folders, modelName)),
  );
}

/** For a start; a click writes one into the question box. */
const exampleQuestions = [
  'What does this project do?',
  'Where does it start, and what happens then?',
  'Which errors are handled, and how?',
];

function invitation(folders: string[], modelName: string): HTMLElement[] {
  const propose = (question: string) => () => {
    input.value = question;
    draftChanged();
    input.focus();
  };
  return [
    el(
      'p',
      {},
      `The files of ${folders.join(', ')} are read by a model on this machine. Nothing leaves it.`,
    ),
    el(
      'p',
      { class: 'muted' },
      'Answers cite files: citations that were found there open the right lines.',
    ),
    ...(modelName === ''
      ? [
          el(
            'div',
            { class: 'buttons' },
            button('Select Model…', 'primary', () => send({ type: 'selectModel' })),
          ),
        ]
      : []),
    el(
      'ul',
      { class: 'examples', 'aria-label': 'Examples of questions' },
      ...exampleQuestions.map((question) =>
        el('li', {}, button(question, 'link', propose(question))),
      ),
    ),
  ];
}

// ------------------------------------------------------------------ messages

window.addEventListener('message', (event: MessageEvent<ToChat>) => {
  const message = event.data;
  switch (message.type) {
    case 'transcript':
      surroundings = message.surroundings;
      views.clear();
      transcript.replaceChildren();
      stickToEnd = true;
      for (const entry of message.entries) show(entry);
      updateControls();
      break;
    case 'entry':
      show(message.entry);
      break;
    case 'append': {
      const view = views.get(message.id);
      if (view === undefined) break;
      view.entry.answer += message.text;
      draw(view);
      break;
    }
    case 'thought': {
      const view = views.get(message.id);
      if (view === undefined) break;
      view.entry.thinking += message.text;
      view.entry.thinkingMs = message.elapsedMs;
      draw(view);
      break;
    }
    case 'surroundings':
      surroundings = message.surroundings;
      updateControls();
      break;
    case 'focusInput':
      input.focus();
      break;
  }
});

// ------------------------------------------------------------------ keyboard

composer.addEventListener('submit', (event) => {
  event.preventDefault();
  ask();
});
input.addEventListener('input', draftChanged);
input.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
window.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !event.isComposing) stop();
});

input.value = api.getState()?.draft ?? '';
draftChanged();
updateControls();
send({ type: 'ready' });
