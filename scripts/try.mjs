// `npm run try`: from a fresh clone to an answer. Builds, fetches the demo model, asks a question
// about the sample workspace. Options after `--` go to `longsight ask`, e.g.
//   npm run try -- --policy dense
//   npm run try -- --workspace DIR --question "..."
import { existsSync } from 'node:fs';
import { build } from './build.mjs';
import { inRoot } from './lib/paths.mjs';
import { main, Problem, runHere, say } from './lib/terminal.mjs';
import { fetchModel } from './model.mjs';

const sample = inRoot('test/fixtures/sample-workspace');
// Small models answer open questions best.
const sampleQuestion = 'What does this project do?';
const ownQuestion = 'What does this project do, and which files matter most?';
const longestAnswerTokens = '96';
// The default keeps short prompts dense; the sample is short, and should show sparse attention.
const denseBelowTokens = '1024';

main(async () => {
  const given = process.argv.slice(2);
  const has = (name) => given.some((each) => each === `--${name}` || each.startsWith(`--${name}=`));
  const help = has('help') || given.includes('-h');
  const own = has('workspace');
  if (own && !has('question') && !help) say(`No --question: asking "${ownQuestion}"`);

  await build();
  const demo = !has('model') && !help;
  const defaults = help
    ? {}
    : {
        workspace: sample,
        question: own ? ownQuestion : sampleQuestion,
        'max-tokens': longestAnswerTokens,
        ...(own ? {} : { 'dense-below-tokens': denseBelowTokens }),
        ...(demo ? { model: await fetchModel() } : {}),
      };
  if (!own && !help && !existsSync(sample)) {
    throw new Problem(`${sample} is missing.`, 'Restore it: git checkout -- test/fixtures');
  }
  if (demo) {
    say(
      '\nDemo model SmolLM2-135M: it shows how everything works together; its answers are unreliable.',
    );
  }
  if (!help && !has('question') && !own) say(`Question: ${sampleQuestion}`);
  say('');

  const missing = Object.entries(defaults).filter(([name]) => !has(name));
  const args = ['ask', ...missing.flatMap(([name, value]) => [`--${name}`, value]), ...given];
  // An interrupt reaches the command, too, which stops in order; this process waits for it.
  process.on('SIGINT', () => undefined);
  const status = await runHere(process.execPath, [inRoot('dist/cli.js'), ...args]);
  if (status === 0 && demo && !has('json')) {
    say(
      [
        '',
        'Next:',
        has('policy')
          ? '  npm run try                                            sparse attention (peak)'
          : '  npm run try -- --policy dense                          the same without sparse attention',
        '  npm run try -- --workspace DIR --question "..."        your own folder',
        '  npm run try -- --model FILE.gguf                       a better model',
        '  npm run package                                        the extension for VS Code',
      ].join('\n'),
    );
  }
  process.exitCode = typeof status === 'number' ? status : 1;
});
