/** One question and its answer. */
import { isOpen, isThinking, type Entry } from '../chat/conversation';
import { remediesOf, remedyTitles, type FromChat } from '../chat/messages';
import {
  confirmText,
  fallbackText,
  filesLine,
  progressText,
  statsLine,
  thoughtLabel,
} from '../status/format';
import { placeCitations, uncheckedSpans } from '../chat/placeCitations';
import { citationElement, clickedCitation, fillMarks, sourceList } from './citations';
import { button, el, setText, updateChildren } from './dom';
import { renderMarkdown } from './markdown';

export class EntryView {
  readonly element: HTMLElement;
  private readonly question = el('div', { class: 'question' });
  private readonly files = el('div', { class: 'files' });
  private readonly fallback = el('div', { class: 'fallback' });
  private readonly progress = el('div', { class: 'progress' });
  private readonly progressLabel = el('span', { class: 'progress-label' });
  private readonly cancel: HTMLButtonElement;
  private readonly bar = el('div', { class: 'bar', role: 'progressbar', 'aria-label': 'Progress' });
  private readonly fill = el('div', { class: 'bar-fill' });
  /** Folded, so that it is not read out; opened by pointer or keyboard as any disclosure. */
  private readonly thought = el('details', { class: 'thought' });
  private readonly thoughtLabel = el('summary', {});
  private readonly thoughtText = el('div', { class: 'thought-text markdown' });
  private readonly answer = el('div', { class: 'answer markdown', 'aria-live': 'polite' });
  private readonly end = el('div', { class: 'end' });
  /** What the last drawing showed: parts that did not change are not touched. */
  private drawnAnswer: string | null = null;
  private drawnThought = '';
  private drawnEnd = '';

  constructor(
    public entry: Entry,
    private readonly send: (message: FromChat) => void,
  ) {
    this.bar.append(this.fill);
    this.cancel = button('Cancel', 'link', () => send({ type: 'stop', id: this.entry.id }), {
      title: 'Do not ask this question',
    });
    this.progress.append(
      el('div', { class: 'progress-row' }, this.progressLabel, this.cancel),
      this.bar,
    );
    this.thought.append(this.thoughtLabel, this.thoughtText);
    this.thought.addEventListener('toggle', () => this.drawThought());
    this.element = el(
      'article',
      { class: 'entry', 'data-id': String(entry.id) },
      this.question,
      this.files,
      this.fallback,
      this.thought,
      this.answer,
      this.progress,
      this.end,
    );
    this.element.addEventListener('click', (event) => {
      const index = clickedCitation(event);
      if (index !== undefined) send({ type: 'openCitation', id: this.entry.id, index });
    });
  }

  draw(): void {
    const { entry } = this;
    this.element.dataset.state = entry.state;
    this.element.setAttribute('aria-label', `Question ${entry.id}`);
    const reading = isOpen(entry) && entry.answer === '';
    setText(this.question, entry.question);
    setText(
      this.files,
      entry.files === null ? '' : filesLine(entry.files, reading ? 'Reading' : 'Read'),
    );
    this.files.hidden = entry.files === null || (entry.state === 'failed' && entry.answer === '');
    setText(this.fallback, entry.fallback === '' ? '' : fallbackText(entry.fallback));
    this.fallback.hidden = entry.fallback === '';
    this.drawProgress();
    this.drawThought();
    this.drawAnswer();
    this.drawEnd();
  }

  private drawProgress(): void {
    const { state, progress } = this.entry;
    this.progress.hidden = state !== 'running';
    if (state !== 'running') return;
    setText(this.progressLabel, progressText(progress));
    // One that runs is stopped below; one that waits, only here.
    this.cancel.hidden = progress.phase !== 'queue';
    const writing = progress.phase === 'thinking' || progress.phase === 'decode';
    const known = progress.share !== null && !writing;
    this.bar.classList.toggle('unknown', !known);
    const percent = Math.round(Math.min(1, progress.share ?? 0) * 100);
    this.fill.style.width = known ? `${percent}%` : '';
    if (known) this.bar.setAttribute('aria-valuenow', String(percent));
    else this.bar.removeAttribute('aria-valuenow');
    this.bar.setAttribute('aria-valuetext', progressText(progress));
  }

  private drawThought(): void {
    const { entry } = this;
    const { thinking, thinkingMs } = entry;
    this.thought.hidden = thinking === '';
    if (thinking === '') return;
    setText(this.thoughtLabel, thoughtLabel(thinkingMs, isThinking(entry)));
    if (!this.thought.open || this.drawnThought === thinking) return;
    this.drawnThought = thinking;
    updateChildren(this.thoughtText, renderMarkdown(thinking));
  }

  private drawAnswer(): void {
    const { entry } = this;
    // Read out once it is whole, not token by token.
    this.answer.setAttribute('aria-busy', String(isOpen(entry)));
    const { answer, citations, citationSpans } = entry;
    const key = `${entry.state} ${answer}`;
    if (this.drawnAnswer === key) return;
    this.drawnAnswer = key;
    const checked = entry.state === 'done';
    const spans = checked ? citationSpans : uncheckedSpans(answer);
    const content = renderMarkdown(withoutFilesLine(placeCitations(answer, spans)));
    fillMarks(content, (index) => {
      if (!checked) return new Text(answer.slice(spans[index]?.start, spans[index]?.end));
      const citation = citations[index];
      return citation === undefined ? null : citationElement(citation, index);
    });
    updateChildren(this.answer, content);
    this.answer.hidden = answer === '';
  }

  /** Everything below the answer: question to the user, error, sources, stats, actions. */
  private drawEnd(): void {
    const { entry } = this;
    const { state, confirmation, error, citations, stopReason, stats } = entry;
    const key = JSON.stringify({ state, confirmation, error, citations, stopReason, stats });
    if (this.drawnEnd === key) return;
    this.drawnEnd = key;
    this.end.replaceChildren();
    if (state === 'confirming') this.end.append(this.confirmCard());
    if (state === 'failed') this.end.append(this.errorCard());
    if (state === 'stopped') this.end.append(el('p', { class: 'note' }, 'Stopped.'));
    if (stopReason === 'length') {
      const note =
        entry.thinking !== '' && withoutFilesLine(entry.answer) === ''
          ? 'The model was still thinking when the longest length was reached. Raise the setting Answer Tokens, or turn Thinking off.'
          : 'The answer reached its longest length (setting Answer Tokens).';
      this.end.append(el('p', { class: 'note' }, note));
    }
    if (citations.length > 0) {
      this.end.append(sourceList(citations));
    }
    if (stats !== null) {
      this.end.append(
        button(
          statsLine(stats),
          'stats-line',
          () => this.send({ type: 'showStats', id: entry.id }),
          { title: 'Show statistics of this answer' },
        ),
      );
    }
    if (!isOpen(entry) && entry.answer !== '') {
      this.end.append(
        el(
          'div',
          { class: 'actions' },
          button('Copy Answer', 'link', () => this.send({ type: 'copy', id: entry.id })),
        ),
      );
    }
  }

  private confirmCard(): HTMLElement {
    const { confirmation, id } = this.entry;
    const card = el('div', { class: 'card', role: 'group', 'aria-label': 'Start a long prefill?' });
    if (confirmation === null) return card;
    const choose = (choice: 'start' | 'fewerFiles' | 'cancel') => () =>
      this.send({ type: 'choose', id, choice });
    const start = button('Start', 'primary', choose('start'));
    const buttons = [start];
    if (confirmation.suggestedBudgetTokens > 0) {
      const tokens = confirmation.suggestedBudgetTokens.toLocaleString('en-US');
      buttons.push(
        button('Fewer Files', 'secondary', choose('fewerFiles'), {
          title: `Read only ${tokens} tokens of the workspace, in less time than the setting Confirm Above Seconds`,
        }),
      );
    }
    buttons.push(button('Cancel', 'secondary', choose('cancel')));
    card.append(
      el('p', {}, confirmText(confirmation.predictedPrefillMs, confirmation.computedTokens)),
      el('div', { class: 'buttons' }, ...buttons),
    );
    // The keyboard goes where the decision is, unless the user is writing the next question.
    const writing =
      document.activeElement instanceof HTMLTextAreaElement && document.activeElement.value !== '';
    if (!writing && document.hasFocus()) queueMicrotask(() => start.focus());
    return card;
  }

  private errorCard(): HTMLElement {
    const { error, id } = this.entry;
    const card = el('div', { class: 'card error', role: 'alert' });
    if (error === null) return card;
    card.append(el('p', { class: 'error-message' }, error.message));
    if (error.action !== '') card.append(el('p', {}, error.action));
    const buttons = remediesOf(error.code).map((remedy, index) =>
      button(remedyTitles[remedy], index === 0 ? 'primary' : 'secondary', () =>
        this.send({ type: 'remedy', id, remedy }),
      ),
    );
    if (buttons.length > 0) card.append(el('div', { class: 'buttons' }, ...buttons));
    return card;
  }
}

/** What was read is said above the answer, in more detail than its first line does. */
function withoutFilesLine(answer: string): string {
  return answer.replace(/^read \d+ of \d+ files\s*/, '');
}
