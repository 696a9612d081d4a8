// The command line of a clone: builds it when it is not built yet, then runs it in this process.
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { inRoot } from './lib/paths.mjs';
import { main } from './lib/terminal.mjs';

main(async () => {
  const command = inRoot('dist/cli.js');
  if (!existsSync(command) || !existsSync(inRoot('dist/longsight.node'))) {
    const { build } = await import('./build.mjs');
    await build();
  }
  createRequire(import.meta.url)(command);
});
