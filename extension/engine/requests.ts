/** Checks what a request asks for, before anything is loaded. */
import { invalidParams } from './errors';
import type { EvaluationPlan } from './evaluation';
import { requireValidParams } from './params';
import { kvCacheTypes, type JobRequest, type ModelRequest } from './protocol';
import { requireValidSampling } from './sampling';

/** Longest answer, prompt or context that any request may name. */
const mostTokens = 2 ** 24;

/** Throws `invalidParams` with the value and its range. */
export function requireValidRequest(request: JobRequest): void {
  if (request.type === 'doctor' || request.type === 'save') return;
  requireModelNumbers(request.model);
  if (request.type === 'pack') return requireInteger('budget', request.workspace.budgetTokens, 0);
  if (request.type === 'evaluate') return requireValidPlan(request);
  requireValidParams(request.params);
  switch (request.type) {
    case 'ask':
      requireInteger('budget', request.workspace.budgetTokens, 0);
      requireInteger('maxTokens', request.answerTokens, 1);
      requireValidSampling(request.sampling);
      if (request.question.trim() === '') {
        throw invalidParams('The question is empty.', 'Ask a question.');
      }
      break;
    case 'score':
      requireInteger('tokens', request.tokens, 0);
      requireInteger('tail', request.tail, 0);
      requireNumber('ropeBaseScale', request.ropeBaseScale, 1, 1000);
      break;
    case 'calibrate':
      if (request.texts.length === 0) throw invalidParams('No texts are given.');
      if (request.coverage !== null && request.kl !== null) {
        throw invalidParams('Both coverage and kl are given.', 'Give one of them, or neither.');
      }
      requireInteger('tokens', request.tokens, 0);
      if (request.coverage !== null) requireNumber('coverage', request.coverage, 0, 1);
      if (request.kl !== null) requireNumber('kl', request.kl, 0, 10);
      requireNumber('ropeBaseScale', request.ropeBaseScale, 1, 1000);
      break;
    case 'bench':
      if (request.tokenCounts.length === 0 && request.prefix === null) {
        throw invalidParams('No token counts are given.');
      }
      if (request.prefix !== null) {
        requireInteger('prefix', request.prefix.tokens, 1);
        requireInteger('new', request.prefix.newTokens, 1);
      }
      requireInteger('runs', request.runs, 1, 1000);
      if (request.forcedDensity !== null) {
        requireNumber('forcedDensity', request.forcedDensity, 0, 1);
      }
      request.tokenCounts.forEach((count) => requireInteger('tokens', count, 1));
      requireInteger('decode', request.decodeTokens, 0);
      requireNumber('ropeBaseScale', request.ropeBaseScale, 1, 1000);
      break;
  }
}

function requireValidPlan({ texts, lengths, settings, tails, probe }: EvaluationPlan): void {
  for (const [name, list] of Object.entries({ texts, lengths, tails })) {
    if (list.length === 0 && !(probe && list === tails))
      throw invalidParams(`No ${name} are given.`);
  }
  settings.forEach(({ params }) => requireValidParams(params));
  for (const { tokens, ropeBaseScale } of lengths) {
    requireInteger('tokens', tokens, 3);
    requireNumber('ropeBaseScale', ropeBaseScale, 1, 1000);
    // A row before the tail must be left, or nothing could be sparse.
    tails.forEach((tail) => requireInteger('tail', tail, 2, tokens - 1));
  }
}

function requireModelNumbers(model: ModelRequest): void {
  requireInteger('threads', model.threads, 0, 1024);
  requireInteger('contextTokens', model.contextTokens, 0);
  if (!kvCacheTypes.includes(model.kvCache)) {
    throw invalidParams(`kvCache = ${model.kvCache} is not one of ${kvCacheTypes.join(', ')}.`);
  }
}

function requireInteger(name: string, value: number, min: number, max = mostTokens): void {
  if (!Number.isInteger(value) || value < min || value > max) {
    throw invalidParams(`${name} = ${value} is not an integer from ${min} to ${max}.`);
  }
}

function requireNumber(name: string, value: number, min: number, max: number): void {
  if (!(value >= min && value <= max)) {
    throw invalidParams(`${name} = ${value} is outside its range: ${min} to ${max}.`);
  }
}
