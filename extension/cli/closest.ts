/** What was probably meant by a word that is none of those known. */

/** The known word that begins with this one, or the one with the fewest typing errors. */
export function closest(word: string, known: readonly string[]): string | undefined {
  const beginnings = known.filter((name) => word.length > 1 && name.startsWith(word));
  if (beginnings.length === 1) return beginnings[0];
  const most = Math.ceil(word.length / 4);
  const ranked = known.map((name) => ({ name, edits: editsBetween(word, name) }));
  ranked.sort((a, b) => a.edits - b.edits);
  return ranked[0] !== undefined && ranked[0].edits <= most ? ranked[0].name : undefined;
}

/** Characters to insert, delete or change, or neighbours to swap (optimal string alignment). */
function editsBetween(a: string, b: string): number {
  let before: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const changed = a[i - 1] === b[j - 1] ? 0 : 1;
      let least = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + changed);
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (swapped) least = Math.min(least, before[j - 2]! + 1);
      row.push(least);
    }
    [before, last] = [last, row];
  }
  return last[b.length]!;
}
