/** Facts about this system and this installation. */
import { readFileSync } from 'node:fs';
import path from 'node:path';

/** Version of glibc; `undefined` where the C library is another one. */
export function glibcVersion(): string | undefined {
  const report = process.report as
    | (NodeJS.ProcessReport & { excludeNetwork?: boolean })
    | undefined;
  if (!report) return undefined;
  // Without this the report looks up the name of every network interface, which can take seconds.
  report.excludeNetwork = true;
  const { header } = report.getReport() as { header?: { glibcVersionRuntime?: string } };
  return header?.glibcVersionRuntime;
}

/** Version of Longsight. `bundleFolder` is dist/, package.json lies above it. */
export function installedVersion(bundleFolder: string): string {
  const file = path.join(bundleFolder, '..', 'package.json');
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}
