// Contrast of text in a webview.

/** The lowest contrast ratio of visible text against what is behind it, and that text. */
export function lowestContrast(frame) {
  return frame.evaluate(() => {
    const numbers = (color) => (color.match(/[\d.]+/g) ?? []).map(Number);
    const behind = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const [r, g, b, a = 1] = numbers(getComputedStyle(at).backgroundColor);
        if (a > 0.99) return [r, g, b];
      }
      const part = document.querySelector('.composer') ? 'sideBar' : 'editor';
      const style = getComputedStyle(document.documentElement);
      const hex = style.getPropertyValue(`--vscode-${part}-background`).trim();
      return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    };
    const luminance = (rgb) => {
      const [r, g, b] = rgb
        .map((value) => value / 255)
        .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    let lowest = { ratio: 21, text: '' };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const text = walker.currentNode.data.trim();
      const element = walker.currentNode.parentElement;
      if (text === '' || !element.checkVisibility() || element.closest(':disabled, script, style'))
        continue;
      const back = behind(element);
      const [r, g, b, a = 1] = numbers(getComputedStyle(element).color);
      const front = [r, g, b].map((value, index) => value * a + back[index] * (1 - a));
      const [light, dark] = [luminance(front), luminance(back)].sort((x, y) => y - x);
      const ratio = (light + 0.05) / (dark + 0.05);
      if (ratio < lowest.ratio) lowest = { ratio, text };
    }
    return lowest;
  });
}
