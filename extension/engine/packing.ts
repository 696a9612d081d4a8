/** From folders and a question to the tokens of a prompt; also the `pack` request by itself. */
import { assemblePrompt, packedText, type Conversation } from '../prompt/assemble';
import type { CitableFile } from '../prompt/citations';
import { packWorkspace, type Packing } from '../prompt/pack';
import type { Part } from '../prompt/pieces';
import { takeSnapshot } from '../workspace/snapshot';
import type { Prompt } from './addon';
import { beginPhase, progressOf, type JobContext } from './job';
import type { ModelKeeper, OpenModel } from './loading';
import type { PackRequest, PackResult, SampleAttentionParams, WorkspaceRequest } from './protocol';
import { concatenate } from './tokenCache';

/** What `ask` reserves for the answer when nothing else is said. */
const answerReserveTokens = 512;

export interface PackNeed extends Conversation {
  workspace: WorkspaceRequest;
  contextTokens: number;
  answerTokens: number;
}

export interface PackedPrompt {
  packing: Packing;
  parts: [Part, Part];
  /** What an answer may cite: files with text, and those of which only the path was shown. */
  citable: CitableFile[];
}

/** Phases `scan` and `tokenize`. Errors: those of `takeSnapshot` and `packWorkspace`. */
export async function packPrompt(
  { workspace, contextTokens, answerTokens, chat, question, thinking }: PackNeed,
  { model, tokens }: OpenModel,
  context: JobContext,
): Promise<PackedPrompt> {
  beginPhase(context, 'scan');
  const found = progressOf(context, 'scan', 'files');
  const snapshot = await takeSnapshot(workspace, {
    signal: context.signal,
    onProgress: (files) => found.report({ done: files, total: 0 }),
  });

  beginPhase(context, 'tokenize');
  const decided = progressOf(context, 'tokenize', 'files');
  tokens.begin();
  const packing = await packWorkspace(
    snapshot,
    {
      format: model.spec,
      contextTokens,
      answerTokens,
      budgetTokens: workspace.budgetTokens,
      strict: workspace.strict,
      chat,
      question,
      thinking,
      signal: context.signal,
      onProgress: (done, total) => decided.report({ done, total }),
    },
    tokens.counter(context.signal),
  );
  const parts = assemblePrompt(model.spec, packing, { chat, question, thinking });
  const shown = new Set(packing.paths);
  const named = snapshot.files
    .filter((file) => shown.has(file.path))
    .map(({ path, absolutePath }) => ({ path, absolutePath, text: null }));
  return { packing, parts, citable: [...packing.full, ...named] };
}

/** Tokens of the parts, which are in the cache since they were counted. */
export async function promptOf(
  parts: [Part, Part],
  params: SampleAttentionParams,
  { tokens }: OpenModel,
  context: JobContext,
): Promise<Prompt> {
  const [files, question] = await Promise.all(
    parts.map(async ({ pieces }) => concatenate(await tokens.tokens(pieces, context.signal))),
  );
  const all = concatenate([files!, question!]);
  const denseFrom = files!.length;
  return { tokens: all, borders: [denseFrom, all.length], denseFrom, params };
}

export async function runPack(
  request: PackRequest,
  keeper: ModelKeeper,
  context: JobContext,
): Promise<PackResult> {
  const open = await keeper.openModel(request.model, context.signal);
  const { packing } = await packPrompt(
    {
      workspace: request.workspace,
      contextTokens: await keeper.contextTokens(open, request.model),
      answerTokens: answerReserveTokens,
      chat: [],
      question: '',
      thinking: false,
    },
    open,
    context,
  );
  return {
    files: packing.files,
    totalTokens: packing.usedTokens,
    ...(request.withText ? { text: packedText(packing) } : {}),
  };
}
