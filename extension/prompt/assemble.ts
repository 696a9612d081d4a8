/** Puts the prompt together: rules, packed files, chat and question, in the model's chat format. */
import type { ChatTurn } from '../engine/protocol';
import {
  fileHeader,
  filesEnd,
  filesStart,
  pathLine,
  pathListHeader,
  questionText,
  rulesText,
} from './layout';
import type { Part } from './pieces';
import { renderChat, type ChatFormat, type Message } from './template';

/** What the files part shows. */
export interface PackedTexts {
  boundary: string;
  /** In prompt order. */
  full: readonly { path: string; text: string }[];
  /** Files of which only the path is shown, in prompt order. */
  paths: readonly string[];
}

export interface Conversation {
  /** Earlier turns, oldest first. */
  chat: readonly ChatTurn[];
  /** '' to see what would be packed for a short question. */
  question: string;
  /** A reasoning model may think before it answers. */
  thinking: boolean;
}

/**
 * The parts of the prompt, `files` then `question`. Each piece is tokenized alone, and the prompt
 * is the concatenation of their tokens. The files part is the same for every chat and question.
 * Throws `badChatTemplate`.
 */
export function assemblePrompt(
  format: ChatFormat,
  packed: PackedTexts,
  { chat, question, thinking }: Conversation,
): [Part, Part] {
  const files = filesTexts(packed);
  const questions = [...chat.map((turn) => turn.question), question];
  const messages: Message[] = [{ role: 'system', texts: [rulesText(packed.boundary)] }];
  questions.forEach((asked, turn) => {
    const texts = turn === 0 ? [...files, questionText(asked)] : [questionText(asked)];
    messages.push({ role: 'user', texts });
    const answer = chat[turn]?.answer;
    if (answer !== undefined) messages.push({ role: 'assistant', texts: [answer] });
  });

  const pieces = renderChat(format, messages, thinking);
  // The question is the text after the files in message 1.
  const border = pieces.findIndex(
    ({ source }) => source?.message === 1 && source.text === files.length,
  );
  const plain = pieces.map(({ text, special }) => ({ text, special }));
  return [
    { name: 'files', pieces: plain.slice(0, border) },
    { name: 'question', pieces: plain.slice(border) },
  ];
}

/** Header and text of each file as texts of their own, then the paths. */
function filesTexts({ boundary, full, paths }: PackedTexts): string[] {
  const texts = [filesStart];
  for (const { path, text } of full) texts.push(fileHeader(boundary, path), text);
  if (paths.length > 0) texts.push(pathListHeader(boundary), ...paths.map(pathLine));
  return [...texts, filesEnd(boundary)];
}

/** The files part as people may read it. */
export function packedText(packed: PackedTexts): string {
  return filesTexts(packed).join('');
}
