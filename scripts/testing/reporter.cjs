// One mocha reporter for every suite, also inside VS Code, where mocha is bundled: it depends on
// nothing. Prints each test; with LONGSIGHT_TEST_REPORT writes { passed, failed, skipped } there.
const { writeFileSync } = require('node:fs');

module.exports = class Reporter {
  constructor(runner) {
    const counts = { passed: 0, failed: 0, skipped: 0 };
    const failures = [];
    let depth = 0;
    const say = (line) => console.log('  '.repeat(depth) + line);
    runner.on('suite', (suite) => {
      if (suite.root) return;
      say(suite.title);
      depth++;
    });
    runner.on('suite end', (suite) => {
      if (!suite.root) depth--;
    });
    runner.on('pass', (test) => {
      counts.passed++;
      say(`✓ ${test.title}${test.duration > 200 ? ` (${test.duration} ms)` : ''}`);
    });
    runner.on('pending', (test) => {
      counts.skipped++;
      say(`- ${test.title}`);
    });
    // Also called for hooks.
    runner.on('fail', (test, error) => {
      counts.failed++;
      failures.push({ test, error });
      say(`✗ ${test.title}`);
    });
    runner.once('end', () => {
      depth = 0;
      for (const { test, error } of failures) say(`\n✗ ${test.fullTitle()}\n${describe(error)}`);
      const report = process.env.LONGSIGHT_TEST_REPORT;
      if (report) writeFileSync(report, JSON.stringify(counts));
    });
  }
};

function describe(error) {
  const text = error?.stack ?? String(error);
  if (error?.expected === undefined || error.showDiff === false) return text;
  const show = (value) => (typeof value === 'string' ? value : JSON.stringify(value, null, 2));
  return `${text}\nexpected: ${show(error.expected)}\nactual: ${show(error.actual)}`;
}
