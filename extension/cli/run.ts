/** One command line from arguments to exit status. */
import path from 'node:path';
import { EngineError, isCancelled, toErrorInfo } from '../engine/errors';
import type { AskAnswer, Engine, JobOptions } from '../engine/client';
import type { SavePlace } from '../engine/idleSaver';
import { nothingNew } from '../engine/protocol';
import type {
  BenchRequest,
  EngineErrorInfo,
  Event,
  ModelRequest,
  SampleAttentionParams,
  SyntheticModel,
} from '../engine/protocol';
import { defaultFolderBytes, sessionFile, sessionsFolder } from '../engine/sessionStore';
import { errorText, fallbackText } from '../status/format';
import { commandHelp, generalHelp } from './help';
import {
  Arguments,
  commands,
  findCommand,
  mostTokens,
  UsageError,
  type Command,
  type CommandName,
} from './options';
import { ProgressLine } from './progress';
import { benchText } from './benchReport';
import { calibrateText, citationsText, doctorText, packText, scoreText, statsText } from './report';
import { prepareEvaluate } from './evaluate';
import { generatedText } from './generatedText';
import { closest } from './closest';
import { readText } from './readText';
import { visible } from './visible';

export interface Terminal {
  stdout: (text: string) => void;
  stderr: (text: string) => void;
  /** Standard error is a terminal whose line can be rewritten. */
  rewritable: boolean;
  env: NodeJS.ProcessEnv;
  cwd: string;
}

export interface Parts {
  terminal: Terminal;
  /** Fires on the first Ctrl-C. */
  signal: AbortSignal;
  version: string;
  startEngine: (log: (level: 'info' | 'warn' | 'error', text: string) => void) => Engine;
  /** Path of the model to use when none is named; `undefined` when there is none. */
  findModel: () => Promise<string | undefined>;
}

const failed = 1;
const wrongUsage = 2;
const interrupted = 130;

/** `argv` without node and script. Never throws. */
export async function run(argv: string[], parts: Parts): Promise<number> {
  const { terminal } = parts;
  const json = argv.includes('--json');
  try {
    return await dispatch(argv, parts);
  } catch (error) {
    if (error instanceof UsageError) {
      const help = error.command === undefined ? '' : ` ${error.command}`;
      const action = `See longsight${help} --help.`;
      showError({ code: 'invalidParams', message: error.message, action }, json, terminal);
      return wrongUsage;
    }
    const info = toErrorInfo(error);
    showError(info, json, terminal);
    if (info.code === 'internal' && error instanceof Error) {
      terminal.stderr(visible(`${error.stack}\n`));
    }
    return statusOf(error, parts.signal);
  }
}

/** Exit status for an error that is no wrong usage. */
function statusOf(error: unknown, signal: AbortSignal): number {
  return isCancelled(error) && signal.aborted ? interrupted : failed;
}

async function dispatch(argv: string[], parts: Parts): Promise<number> {
  const { terminal } = parts;
  const [name, ...rest] = argv;
  if (name === '--version') {
    terminal.stdout(`${parts.version}\n`);
    return 0;
  }
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    if (name === undefined) throw new UsageError('No command is given.', undefined);
    const topic = name === 'help' ? rest[0] : undefined;
    terminal.stdout(topic === undefined ? generalHelp() : commandHelp(commandNamed(topic)));
    return 0;
  }
  const command = commandNamed(name);
  if (rest.includes('--help') || rest.includes('-h')) {
    terminal.stdout(commandHelp(command));
    return 0;
  }
  const args = Arguments.parse(command, rest);
  const run = new CommandRun(args, parts);
  return run.finish(await prepared[command.name](args, run));
}

function commandNamed(name: string): Command {
  const command = findCommand(name);
  if (command !== undefined) return command;
  const names = commands.map((known) => known.name);
  const meant = closest(name, names);
  const hint = meant === undefined ? '' : ` Did you mean ${meant}?`;
  throw new UsageError(`There is no command ${name}.${hint}`, undefined);
}

/** What a command does once its arguments are known to be right. */
export type Action = (engine: Engine, options: JobOptions) => Promise<number>;
type Prepare = (args: Arguments, run: CommandRun) => Promise<Action>;

const prepared: Record<CommandName, Prepare> = {
  ask: prepareAsk,
  pack: preparePack,
  score: prepareScore,
  calibrate: prepareCalibrate,
  bench: prepareBench,
  evaluate: prepareEvaluate,
  doctor: prepareDoctor,
};

async function prepareAsk(args: Arguments, run: CommandRun): Promise<Action> {
  const body = {
    workspace: workspaceOf(args, run),
    question: args.required('question'),
    chat: [],
    answerTokens: args.integer('max-tokens', 512, 1, mostTokens),
    sampling: args.sampling(),
    thinking: args.has('thinking'),
    params: run.params,
    confirmAbovePrefillMs: 0,
  };
  const model = await run.model();
  const place = placeOf(args, run, model.path, body.workspace.folders[0]!.path);
  return async (engine, options) => {
    let streamed = '';
    const onEvent = (event: Event) => {
      options.onEvent?.(event);
      if (event.type === 'thinking') run.think(event.text);
      if (event.type !== 'token' || run.json) return;
      run.write(event.text);
      streamed += event.text;
    };
    const answer = await engine.ask(
      { ...body, savedSession: place.file, model },
      { ...options, onEvent },
    ).result;
    showAnswer(answer, streamed.length, run);
    return place.file === '' ? 0 : saveSession(engine, place, options, run);
  };
}

function showAnswer(answer: AskAnswer, streamedLength: number, run: CommandRun): void {
  if (run.json) {
    const citations = answer.citations.map(({ path: file, startLine, endLine, status }) => ({
      path: file,
      startLine,
      endLine,
      status,
    }));
    const { thinking, files, stats } = answer;
    run.print({ answer: answer.answer, thinking, citations, files, stats });
    return;
  }
  run.write(answer.answer.slice(streamedLength));
  if (!answer.answer.endsWith('\n')) run.write('\n');
  run.write(citationsText(answer));
  run.note(`\n${statsText(answer.stats)}`);
}

/** Where `--session` says; nowhere without it. */
function placeOf(args: Arguments, run: CommandRun, model: string, folder: string): SavePlace {
  const named = args.text('session');
  if (named === undefined) return { file: '', mostFolderBytes: 0 };
  if (named === 'auto') {
    const store = sessionsFolder(run.env);
    return { file: sessionFile(store, model, [folder]), mostFolderBytes: defaultFolderBytes };
  }
  return { file: path.resolve(run.cwd, args.required('session')), mostFolderBytes: 0 };
}

/** The answer is out already: what goes wrong now is a note, and the exit status. */
async function saveSession(
  engine: Engine,
  place: SavePlace,
  options: JobOptions,
  run: CommandRun,
): Promise<number> {
  try {
    const { saved, reason } = await engine.save(place, options).result;
    return saved || reason === nothingNew ? 0 : failed;
  } catch (error) {
    run.note(`longsight: The session was not saved. ${errorText(toErrorInfo(error))}\n`);
    return isCancelled(error) ? interrupted : failed;
  }
}

async function preparePack(args: Arguments, run: CommandRun): Promise<Action> {
  const body = { workspace: workspaceOf(args, run), withText: args.has('text') };
  const model = await run.model();
  return async (engine, options) => {
    const result = await engine.pack({ ...body, model }, options).result;
    const files = result.files.map(({ path: file, tokens, tier, reason }) => ({
      path: file,
      tokens,
      tier,
      reason,
    }));
    const { totalTokens, text } = result;
    run.print({ files, totalTokens, ...(text === undefined ? {} : { text }) }, packText(result));
    return 0;
  };
}

async function prepareScore(args: Arguments, run: CommandRun): Promise<Action> {
  const against = args.choice('against', '', ['', 'dense']);
  const body = {
    tokens: args.integer('tokens', 0, 2, mostTokens),
    tail: args.integer('tail', 0, 1, mostTokens),
    tailPolicy: args.choice('tail-policy', 'dense', ['dense', 'same']),
    against: against === '' ? null : against,
    ropeBaseScale: args.number('rope-base-scale', 1, 1, 1000),
    params: run.params,
  };
  const text = await run.readText(args.required('text'));
  const model = await run.model();
  return async (engine, options) => {
    const result = await engine.score({ ...body, text, model }, options).result;
    run.print(result, scoreText(result));
    return 0;
  };
}

async function prepareCalibrate(args: Arguments, run: CommandRun): Promise<Action> {
  const body = {
    tokens: args.integer('tokens', 0, 2, mostTokens),
    coverage: args.optionalNumber('coverage', 0, 1, true),
    kl: args.optionalNumber('kl', 0, 10, true),
    ropeBaseScale: args.number('rope-base-scale', 1, 1, 1000),
    params: run.params,
  };
  if (body.coverage !== null && body.kl !== null) args.fail('--coverage and --kl are both given');
  const files = args.texts('text');
  if (files.length === 0) args.fail('--text is missing');
  const texts = await Promise.all(files.map((file) => run.readText(file)));
  const model = await run.model();
  return async (engine, options) => {
    const result = await engine.calibrate({ ...body, texts, model }, options).result;
    run.print(result, calibrateText(result));
    return 0;
  };
}

async function prepareBench(args: Arguments, run: CommandRun): Promise<Action> {
  const prefix = prefixOf(args);
  const body = {
    synthetic: syntheticOf(args),
    forcedDensity: args.optionalNumber('force-density', 0, 1, true),
    tokenCounts:
      prefix !== null && args.text('tokens') === undefined
        ? []
        : args.integers('tokens', 1, mostTokens),
    prefix,
    runs: args.integer('runs', 1, 1, 1000),
    speculate: args.has('speculate'),
    decodeTokens: args.integer('decode', 0, 0, mostTokens),
    ropeBaseScale: args.number('rope-base-scale', 1, 1, 1000),
    params: run.params,
  };
  if (body.synthetic !== null) {
    if (args.text('backend') === 'cpu') {
      args.fail('--synthetic needs a GPU, on which it makes the weights: give --model instead');
    }
    if (args.text('text') !== undefined) args.fail('--text and --synthetic are both given');
    const model = { ...run.options(), path: '' };
    return async (engine, options) => {
      const result = await engine.bench({ ...body, text: new Uint8Array(), model }, options).result;
      run.print(result, benchText(result));
      return 0;
    };
  }
  const file = args.text('text');
  // More bytes than tokens are never needed; beyond 4 MB the text repeats.
  const longest = Math.max(
    ...body.tokenCounts,
    prefix === null ? 0 : prefix.tokens + prefix.newTokens,
  );
  const bytes = Math.min(8 * longest, 4 * 2 ** 20);
  const text = file === undefined ? generatedText(bytes) : await run.readText(file);
  if (file === undefined) {
    run.note('No --text is given: the prompt is generated words; density depends on the text.\n');
  }
  const model = await run.model();
  return async (engine, options) => {
    const result = await engine.bench({ ...body, text, model }, options).result;
    run.print(result, benchText(result));
    return 0;
  };
}

function prefixOf(args: Arguments): BenchRequest['prefix'] {
  const tokens = args.integer('prefix', 0, 1, mostTokens);
  const newTokens = args.integer('new', 0, 1, mostTokens);
  if (tokens === 0 && newTokens === 0) return null;
  if (newTokens === 0) args.fail('--prefix is given without --new');
  if (tokens === 0) args.fail('--new is given without --prefix');
  return { tokens, newTokens };
}

function syntheticOf(args: Arguments): SyntheticModel | null {
  const weights = args.text('weights');
  if (args.text('synthetic') === undefined) {
    if (weights !== undefined) args.fail('--weights is given without --synthetic');
    return null;
  }
  return { name: args.required('synthetic'), weights: weights ?? 'bf16' };
}

async function prepareDoctor(_args: Arguments, run: CommandRun): Promise<Action> {
  const { params } = run;
  let model: ModelRequest | null = null;
  let missing: EngineErrorInfo | undefined;
  try {
    model = await run.model();
  } catch (error) {
    missing = toErrorInfo(error);
  }
  return async (engine, options) => {
    const result = await engine.doctor({ model, params }, options).result;
    if (missing) result.problems.push(missing);
    run.print(result, doctorText(result));
    return result.devices.some((device) => device.usable) ? 0 : failed;
  };
}

function workspaceOf(args: Arguments, run: CommandRun) {
  const folder = path.resolve(run.cwd, args.required('workspace'));
  return {
    folders: [{ name: path.basename(folder), path: folder }],
    unsaved: {},
    budgetTokens: args.integer('budget', 0, 0, mostTokens),
    strict: args.command.name === 'ask' && args.has('strict'),
  };
}

/** Output and engine of one command. */
export class CommandRun {
  readonly json: boolean;
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
  readonly params: SampleAttentionParams;
  private readonly modelOptions: Omit<ModelRequest, 'path'>;
  private readonly progress: ProgressLine;
  private readonly verbose: boolean;
  private readonly thoughtsShown: boolean;
  private inThought = false;
  private fallbackTold = false;

  constructor(
    private readonly args: Arguments,
    private readonly parts: Parts,
  ) {
    const { terminal } = parts;
    this.params = args.params();
    this.modelOptions = args.modelOptions();
    this.json = args.has('json');
    this.verbose = args.has('verbose');
    this.cwd = terminal.cwd;
    this.env = terminal.env;
    const rewritable = terminal.rewritable && !this.json;
    this.thoughtsShown = rewritable || args.has('show-thinking');
    this.progress = new ProgressLine(terminal.stderr, rewritable, this.thoughtsShown);
  }

  /** All of a model request but its file. */
  options(): Omit<ModelRequest, 'path'> {
    return this.modelOptions;
  }

  async model(): Promise<ModelRequest> {
    const options = this.modelOptions;
    const named = this.args.text('model') || this.parts.terminal.env.LONGSIGHT_MODEL;
    if (named) return { ...options, path: path.resolve(this.cwd, named) };
    const found = await this.parts.findModel();
    if (found !== undefined) return { ...options, path: found };
    throw new EngineError(
      'noModel',
      'No model is named, and the models folder holds none.',
      'Name a GGUF file with --model or LONGSIGHT_MODEL, or fetch the demo model with `npm run try`.',
    );
  }

  readText(file: string): Promise<Uint8Array> {
    return readText(path.resolve(this.cwd, file), this.parts.signal);
  }

  /** Runs the action with an engine of its own; the process has ended before this resolves. */
  async finish(action: Action): Promise<number> {
    const { signal, startEngine } = this.parts;
    const engine = startEngine((level, text) => {
      if (this.verbose || level !== 'info') this.note(`${text}\n`);
    });
    try {
      return await action(engine, { signal, onEvent: (event) => this.take(event) });
    } finally {
      this.clearLine();
      await engine.dispose();
    }
  }

  private take(event: Event): void {
    this.progress.show(event);
    if (event.type !== 'place' || event.fallback === '' || this.fallbackTold) return;
    this.fallbackTold = true;
    this.note(`${fallbackText(event.fallback)}\n`);
  }

  /**
   * What there is of a result whose rest failed: one object with its `error`, or text, then the error.
   * Returns the exit status.
   */
  printPartial(result: object, text: string, error: unknown): number {
    const info = toErrorInfo(error);
    this.print({ ...result, error: info }, text);
    showError(info, false, this.parts.terminal);
    return statusOf(error, this.parts.signal);
  }

  /** The result: as JSON, or as text for people. */
  print(result: object, text = ''): void {
    this.write(this.json ? `${JSON.stringify(result)}\n` : text);
  }

  write(text: string): void {
    if (text === '') return;
    this.clearLine();
    this.parts.terminal.stdout(visible(text));
  }

  note(text: string): void {
    this.clearLine();
    this.parts.terminal.stderr(visible(text));
  }

  /** A piece of the thought that precedes the answer: dim, and never on standard output. */
  think(text: string): void {
    if (!this.thoughtsShown) return;
    this.progress.clear();
    this.inThought = true;
    const { stderr, rewritable } = this.parts.terminal;
    const shown = visible(text);
    stderr(rewritable ? `\x1b[2m${shown}\x1b[22m` : shown);
  }

  /** What comes next begins on a line of its own. */
  private clearLine(): void {
    this.progress.clear();
    if (this.inThought) this.parts.terminal.stderr('\n\n');
    this.inThought = false;
  }
}

function showError(error: EngineErrorInfo, json: boolean, terminal: Terminal): void {
  if (json) terminal.stdout(visible(`${JSON.stringify({ error })}\n`));
  terminal.stderr(visible(`longsight: ${errorText(error)}\n`));
}
