/**
 * The model's chat template, rendered around placeholders and split there: what the template wrote
 * may contain special tokens, what stands for a placeholder never does.
 */
import { Template } from '@huggingface/jinja';
import { CodedError } from '../workspace/errors';
import type { Piece } from './pieces';
import { opensThought, withThoughtEnded } from './thinking';

/** As the GGUF has it; the addon's `ModelSpec` fits. */
export interface ChatFormat {
  /** Jinja; empty when the model has none. */
  chatTemplate: string;
  bosText: string;
  eosText: string;
  /** The tokenizer wants a BOS token before any prompt. */
  addBos: boolean;
}

/** `texts`: the content in pieces, each of which is tokenized alone. */
export interface Message {
  role: 'system' | 'user' | 'assistant';
  texts: readonly string[];
}

/** One text of a message (`message`, `text` are its indices), or text of the template. */
export type RenderedPiece = Piece & { source: { message: number; text: number } | null };

// Models write "today" into their system prompt; a date that changes would make every day's first
// question read the whole workspace again. This is the date of Llama 3's own fallback.
const fixedDate = '26 Jul 2024';
const noClock = `{% macro strftime_now(format) %}${fixedDate}{% endmacro %}`;

/**
 * The messages as this model expects them, up to where its answer begins. The first message is the
 * system message; a template without a system role, or one that moves it behind a later message,
 * gets its texts at the head of the first user message. Without a template: plain paragraphs.
 * `thinking`: a reasoning model may think before it answers. Throws `badChatTemplate`.
 */
export function renderChat(
  format: ChatFormat,
  messages: readonly Message[],
  thinking: boolean,
): RenderedPiece[] {
  const pieces =
    format.chatTemplate.trim() === ''
      ? renderPlain(messages)
      : renderJinja(format, messages, thinking);
  const start = pieces[0];
  if (format.addBos && format.bosText !== '') {
    const present = start?.source === null && start.text.trimStart().startsWith(format.bosText);
    if (!present) pieces.unshift({ text: format.bosText, special: true, source: null });
  }
  return pieces;
}

/** Whether this model's prompts depend on `thinking`. Throws `badChatTemplate`. */
export function canThink(format: ChatFormat): boolean {
  const messages: Message[] = [
    { role: 'system', texts: ['rules'] },
    { role: 'user', texts: ['question'] },
  ];
  const prompt = (thinking: boolean) =>
    renderChat(format, messages, thinking)
      .map(({ text }) => text)
      .join('');
  return prompt(true) !== prompt(false);
}

function renderJinja(
  format: ChatFormat,
  messages: readonly Message[],
  thinking: boolean,
): RenderedPiece[] {
  let template: Template;
  try {
    template = new Template(noClock + format.chatTemplate);
  } catch (error) {
    throw badTemplate(`cannot be parsed: ${messageOf(error)}`);
  }
  const render = (mergeSystem: boolean) =>
    renderGroups(template, format, messages, grouping(messages, mergeSystem), thinking);
  try {
    return render(false);
  } catch (first) {
    try {
      return render(true);
    } catch {
      throw badTemplate(messageOf(first));
    }
  }
}

/** For each message that the template is given, the indices of those whose texts it holds. */
type Grouping = { role: Message['role']; members: number[] }[];

function grouping(messages: readonly Message[], mergeSystem: boolean): Grouping {
  const groups = messages.map(({ role }, index) => ({ role, members: [index] }));
  const [system, user, ...rest] = groups;
  if (!mergeSystem || system === undefined || user === undefined) return groups;
  return [{ role: user.role, members: [...system.members, ...user.members] }, ...rest];
}

function renderGroups(
  template: Template,
  format: ChatFormat,
  messages: readonly Message[],
  groups: Grouping,
  thinking: boolean,
): RenderedPiece[] {
  let salt = 0;
  while (format.chatTemplate.includes(`slot${salt}of`)) salt++;
  // A letter ends each word, so that no word is the beginning of another.
  const wordOf = (index: number) => `slot${salt}of${index}x`;
  const rendered = template.render({
    messages: groups.map(({ role, members }) => ({
      role,
      content: members.map(wordOf).join('\n\n'),
    })),
    add_generation_prompt: true,
    bos_token: format.bosText,
    eos_token: format.eosText,
    date_string: fixedDate,
    // The second name is that of DeepSeek and Granite.
    enable_thinking: thinking,
    thinking,
  });

  const pieces: RenderedPiece[] = [];
  let from = 0;
  messages.forEach(({ role, texts }, message) => {
    const word = wordOf(message);
    const at = rendered.indexOf(word, from);
    if (at < 0 || rendered.indexOf(word) !== rendered.lastIndexOf(word)) {
      throw new Error(`does not show the ${role} message once and in its place`);
    }
    if (at > from) pieces.push({ text: rendered.slice(from, at), special: true, source: null });
    pieces.push(...contentPieces(texts, message));
    from = at + word.length;
  });
  const end = rendered.slice(from);
  if (end !== '') {
    // Some templates open a thought whatever they are told.
    const text = !thinking && opensThought(end) ? withThoughtEnded(end) : end;
    pieces.push({ text, special: true, source: null });
  }
  return pieces;
}

function contentPieces(texts: readonly string[], message: number): RenderedPiece[] {
  return texts.map((text, index) => ({ text, special: false, source: { message, text: index } }));
}

const plainNames = { system: '', user: '', assistant: 'Answer: ' } as const;

/** For models that were never taught a chat format. */
function renderPlain(messages: readonly Message[]): RenderedPiece[] {
  const plain = (text: string): RenderedPiece => ({ text, special: false, source: null });
  const pieces = messages.flatMap(({ role, texts }, message) => [
    ...(plainNames[role] === '' ? [] : [plain(plainNames[role])]),
    ...contentPieces(texts, message),
    plain('\n\n'),
  ]);
  return [...pieces, plain('Answer:')];
}

function badTemplate(why: string): CodedError {
  return new CodedError(
    'badChatTemplate',
    `The model's chat template ${why}.`,
    'Choose another GGUF file of this model, with a current chat template.',
  );
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
