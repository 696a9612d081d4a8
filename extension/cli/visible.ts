/**
 * Text as a terminal may get it. What models, files and paths say could hold controls that move the
 * cursor, hide what was written or make the terminal type; they are shown instead of obeyed. Line
 * ends and tabs stay. In JSON, where only DEL and the C1 controls come unescaped, the result is
 * JSON of the same value.
 */
export function visible(text: string): string {
  return text.replace(/\r(?=\n|$)|[\0-\x08\x0b-\x1f\x7f-\x9f]/g, (control, at: number) => {
    if (control === '\r' && (text[at + 1] ?? '\n') === '\n') return '';
    const code = control.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(picturesFrom + code) : escaped(code);
  });
}

/** As `visible`, for what must stay one line and look like what it is: a path. */
export function visibleLine(text: string): string {
  const shown = /\p{Cc}/u.test(text) ? JSON.stringify(text) : text;
  return visible(shown.replace(directional, (mark) => escaped(mark.charCodeAt(0))));
}

/** U+2400 SYMBOL FOR NULL, behind which the others stand in their order. */
const picturesFrom = 0x2400;
/** Marks that turn the direction of what follows, so that one name looks like another. */
const directional = /[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

function escaped(code: number): string {
  return `\\u${code.toString(16).padStart(4, '0')}`;
}
