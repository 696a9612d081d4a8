// Types find most mistakes; these rules keep the rooms of docs/architecture.md apart.
// test/unit/lint/boundaries.test.ts proves that they bite.
import eslint from '@eslint/js';
import { defineConfig } from 'eslint/config';
import tseslint from 'typescript-eslint';

// The vocabulary that every room speaks: types, errors and the table of parameters.
const vocabulary = 'protocol|errors|params';

// What each room may import besides itself and the vocabulary. What comes later in the way of a
// question is never imported by what comes earlier.
const rooms = {
  workspace: [],
  prompt: ['workspace'],
  models: [],
  engine: ['workspace', 'prompt'],
  status: ['engine', 'chat/conversation'],
  chat: ['engine', 'models', 'status', 'config'],
  commands: ['engine', 'models', 'status', 'chat', 'config'],
  cli: ['engine', 'models', 'status/format'],
  webview: [
    'chat/conversation',
    'chat/messages',
    'chat/placeCitations',
    'status/format',
    'status/messages',
  ],
};
const speaksToVsCode = [
  'extension/extension.ts',
  'extension/config.ts',
  'extension/{chat,status,commands}/**',
];
const loadsAddon = 'extension/engine/worker.ts';

/** Forbids imports that leave `room` for anything but `allowed`. */
function boundary(room, allowed) {
  const open = [`engine/(${vocabulary})$`, ...allowed.map((each) => `${each}(/|$)`)].join('|');
  return {
    regex: `^\\.\\./(?!${open})`,
    message: `${room}/ may import only ${[`engine/{${vocabulary.replaceAll('|', ',')}}`, ...allowed].join(', ')}.`,
  };
}

const noVsCode = { name: 'vscode', message: 'This room runs in terminals and tests, too.' };
const noAddonLoading = [
  { name: 'node:module', message: 'Only engine/worker.ts loads native code.' },
  { name: 'module', message: 'Only engine/worker.ts loads native code.' },
];
const addonFace = [
  {
    regex: '/addon$',
    allowTypeImports: true,
    message: 'The addon is a value only in engine/worker.ts: import its types.',
  },
  { regex: '/loadAddon$', message: 'Only engine/worker.ts loads native code.' },
];
const hiddenWays = [
  {
    selector: "ImportExpression[source.value='vscode']",
    message: 'Import vscode at the top, where it is allowed.',
  },
  { selector: 'Literal[value=/\\.node$/]', message: 'Only engine/worker.ts names the addon.' },
  {
    selector: "MemberExpression[object.name='process'][property.name='dlopen']",
    message: 'Only engine/worker.ts loads native code.',
  },
];

function readonly(names) {
  return Object.fromEntries(names.split(' ').map((name) => [name, 'readonly']));
}

export default defineConfig(
  {
    ignores: [
      'node_modules/',
      'dist/',
      'out-test/',
      'build/',
      '.deps/',
      'test-results/',
      'test/fixtures/',
    ],
  },
  eslint.configs.recommended,
  // Escape codes are how one speaks to a terminal.
  { rules: { 'no-control-regex': 'off' } },
  {
    files: ['**/*.{mjs,cjs}'],
    languageOptions: {
      globals: readonly(
        'console process require module performance setTimeout clearTimeout setInterval clearInterval ' +
          'URL fetch Buffer AbortSignal AbortController',
      ),
    },
  },
  {
    files: ['test/browser/**/*.mjs'],
    languageOptions: { globals: readonly('describe it before after beforeEach afterEach') },
  },
  {
    files: ['test/browser/**/*.mjs', 'scripts/vscode-shim.mjs'],
    // Functions that are sent into a page.
    languageOptions: {
      globals: readonly('window document navigator getComputedStyle MutationObserver NodeFilter'),
    },
  },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: {
      parserOptions: {
        project: ['tsconfig.json', 'extension/webview/tsconfig.json'],
        tsconfigRootDir: import.meta.dirname,
      },
    },
    rules: {
      '@typescript-eslint/consistent-type-imports': ['error', { fixStyle: 'inline-type-imports' }],
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      eqeqeq: 'error',
      // With noUncheckedIndexedAccess an index that was just checked needs it.
      '@typescript-eslint/no-non-null-assertion': 'off',
      // Numbers and booleans read well in templates.
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        { allowNumber: true, allowBoolean: true },
      ],
      // `() => call()` and `async` to fit an interface are idioms, not mistakes.
      '@typescript-eslint/no-confusing-void-expression': 'off',
      '@typescript-eslint/require-await': 'off',
      // Our objects of functions are closures, not classes.
      '@typescript-eslint/unbound-method': 'off',
    },
  },
  {
    files: ['test/**/*.ts'],
    rules: {
      // A test looks into JSON and into fakes.
      '@typescript-eslint/no-base-to-string': 'off',
      '@typescript-eslint/no-unnecessary-condition': 'off',
      '@typescript-eslint/no-unsafe-argument': 'off',
      '@typescript-eslint/no-unsafe-assignment': 'off',
      '@typescript-eslint/no-unsafe-call': 'off',
      '@typescript-eslint/no-unsafe-member-access': 'off',
      '@typescript-eslint/no-unsafe-return': 'off',
      '@typescript-eslint/restrict-plus-operands': 'off',
      '@typescript-eslint/no-misused-promises': 'off',
    },
  },
  {
    files: ['extension/**/*.ts'],
    rules: {
      'no-restricted-syntax': ['error', ...hiddenWays],
      '@typescript-eslint/no-restricted-imports': [
        'error',
        { paths: [noVsCode, ...noAddonLoading], patterns: addonFace },
      ],
    },
  },
  {
    files: speaksToVsCode,
    ignores: ['extension/chat/conversation.ts'],
    rules: {
      '@typescript-eslint/no-restricted-imports': [
        'error',
        { paths: noAddonLoading, patterns: addonFace },
      ],
    },
  },
  ...Object.entries(rooms).map(([room, allowed]) => ({
    files: [`extension/${room}/**/*.ts`],
    rules: {
      'no-restricted-imports': ['error', { patterns: [boundary(room, allowed)] }],
    },
  })),
  {
    files: [loadsAddon],
    rules: {
      '@typescript-eslint/no-restricted-imports': ['error', { paths: [noVsCode] }],
      'no-restricted-syntax': 'off',
    },
  },
);
