/**
 * Answers as HTML. The text comes from a model that read files of strangers: no raw HTML, no
 * images, and links only to the web, which the editor asks about before it opens them.
 */
import MarkdownIt from 'markdown-it';

const markdown = new MarkdownIt('default', { html: false, linkify: false, typographer: false });
markdown.disable('image');
markdown.validateLink = (url) => /^https?:\/\//i.test(url);

markdown.renderer.rules.link_open = (tokens, index, options, _env, self) => {
  const token = tokens[index];
  if (token === undefined) return '';
  // Where a link leads is visible before it is clicked.
  token.attrSet('title', token.attrGet('href') ?? '');
  token.attrSet('rel', 'noopener noreferrer');
  return self.renderToken(tokens, index, options);
};
// A style attribute (column alignment) is what the content security policy forbids.
for (const rule of ['th_open', 'td_open']) {
  markdown.renderer.rules[rule] = (tokens, index, options, _env, self) => {
    const token = tokens[index];
    const style = token?.attrGet('style') ?? '';
    if (token !== undefined && style !== '') {
      token.attrs = null;
      token.attrSet('class', `align-${style.replace('text-align:', '')}`);
    }
    return self.renderToken(tokens, index, options);
  };
}

export function renderMarkdown(text: string): DocumentFragment {
  const template = document.createElement('template');
  template.innerHTML = markdown.render(text);
  for (const pre of template.content.querySelectorAll('pre')) pre.tabIndex = 0;
  for (const table of template.content.querySelectorAll('table')) {
    const frame = document.createElement('div');
    frame.className = 'table-frame';
    table.replaceWith(frame);
    frame.append(table);
  }
  return template.content;
}
