/** `calibrate`: epsilons by head for one model, chosen on sample texts, kept beside the model. */
import { writeCalibration } from './calibration';
import { invalidParams } from './errors';
import { beginPhase, progressOf, stoppable, type JobContext } from './job';
import type { ModelKeeper } from './loading';
import type { CalibrateRequest, CalibrateResult, CalibrationSummary } from './protocol';
import { tokenizeRaw } from './scoring';

export async function runCalibrate(
  request: CalibrateRequest,
  keeper: ModelKeeper,
  context: JobContext,
): Promise<CalibrateResult> {
  const { params, coverage, kl } = request;
  if (params.policy !== 'peak' || params.epsilon === 0) {
    throw invalidParams(
      `Calibration chooses epsilons of policy peak, but policy is ${params.policy} and epsilon ${params.epsilon}.`,
      'Use policy peak and an epsilon above 0.',
    );
  }
  // Curves of epsilons are measured on the CPU alone.
  const backend = request.model.backend === 'auto' ? 'cpu' : request.model.backend;
  const { model } = await keeper.openModel(request.model, context.signal);
  const texts: Int32Array[] = [];
  for (const text of request.texts) {
    const tokens = await tokenizeRaw(model, text);
    texts.push(request.tokens > 0 ? tokens.subarray(0, request.tokens) : tokens);
  }
  const longest = Math.max(...texts.map((tokens) => tokens.length));
  const { session } = await keeper.openSession(
    { ...request.model, backend, calibration: 'off' },
    { params, ropeBaseScale: request.ropeBaseScale, minTokens: longest },
    context,
  );
  beginPhase(context, 'prefill');
  const outcome = await stoppable(context, session, () =>
    session.calibrate(
      texts,
      params,
      { coverage, kl },
      progressOf(context, 'prefill', 'tokens').session,
    ),
  );
  const { headEpsilons, ...chosen } = outcome.chosen;
  const summary: CalibrationSummary = {
    target: { coverage, kl },
    textTokens: texts.map((tokens) => tokens.length),
    plain: { density: outcome.plain.density, coverage: outcome.plain.coverage },
    chosen,
    kl: outcome.kl,
  };
  const path = await writeCalibration(model.spec, params, summary, headEpsilons);
  return { path, ...summary };
}
