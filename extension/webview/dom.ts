/** Elements without a framework. Text always goes in as text. */

type Attributes = Record<string, string | boolean | undefined>;

/** `el('button', { class: 'link', type: 'button' }, 'Copy')`; `true` sets an empty attribute. */
export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children);
  return element;
}

export function button(
  label: string,
  className: string,
  onClick: () => void,
  attributes: Attributes = {},
): HTMLButtonElement {
  const element = el('button', { type: 'button', class: className, ...attributes }, label);
  element.addEventListener('click', onClick);
  return element;
}

/**
 * Makes `target` hold `next`, but keeps the leading children that are already equal: a growing
 * answer does not lose a selection in what stands above.
 */
export function updateChildren(target: Element, next: DocumentFragment): void {
  const wanted = [...next.childNodes];
  let same = 0;
  while (same < wanted.length && same < target.childNodes.length) {
    if (!target.childNodes[same]?.isEqualNode(wanted[same] ?? null)) break;
    same++;
  }
  while (target.childNodes.length > same) target.lastChild?.remove();
  target.append(...wanted.slice(same));
}

/** Sets text only where it differs, so that nothing is announced or laid out anew. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}
