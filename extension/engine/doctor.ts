/** `doctor`: what this machine can run, and the way out of what it cannot. */
import type { Addon, ModelSpec } from './addon';
import { isCancelled, toErrorInfo } from './errors';
import type { JobContext } from './job';
import type { ModelKeeper } from './loading';
import type { DoctorRequest, DoctorResult, ModelReport } from './protocol';
import { listSessions, sessionsFolder } from './sessionStore';
import { glibcVersion } from './system';

/** Fails only when cancelled: whatever else goes wrong is a line of `problems`. */
export async function runDoctor(
  request: DoctorRequest,
  addon: () => Addon,
  keeper: ModelKeeper,
  version: string,
  context: JobContext,
): Promise<DoctorResult> {
  const result: DoctorResult = {
    version,
    platform: platformText(),
    devices: [],
    cpuFeatures: [],
    kernels: { attention: '', linear: '' },
    sessions: await savedSessions(),
    problems: [],
  };
  const cuda = { name: 'cuda', usable: false, reason: 'this version computes on the CPU only' };
  try {
    const machine = addon().machine();
    const reason = `${machine.physicalCores} cores, ${machine.kernels.attention} attention kernel`;
    result.devices = [{ name: 'cpu', usable: true, reason }, cuda];
    result.cpuFeatures = machine.cpuFeatures;
    result.kernels = machine.kernels;
  } catch (error) {
    const problem = toErrorInfo(error);
    result.devices = [{ name: 'cpu', usable: false, reason: problem.message }, cuda];
    result.problems.push(problem);
    return result;
  }
  if (request.model === null) return result;
  try {
    const { model } = await keeper.openModel(request.model, context.signal);
    const { kvCache } = request.model;
    const contextTokens = request.model.contextTokens || model.spec.contextTokens;
    const { params } = request;
    result.model = reportOf(model.spec);
    result.memory = {
      ...model.estimateMemory({ backend: 'cpu', device: 0, contextTokens, params, kvCache }),
      kvCache,
    };
  } catch (error) {
    if (isCancelled(error)) throw error;
    result.problems.push(toErrorInfo(error));
  }
  return result;
}

function reportOf(spec: ModelSpec): ModelReport {
  const { path, name, architecture, layers, heads, kvHeads, headDim, contextTokens, fileType } =
    spec;
  return { path, name, architecture, layers, heads, kvHeads, headDim, contextTokens, fileType };
}

async function savedSessions(): Promise<DoctorResult['sessions']> {
  const folder = sessionsFolder();
  const sessions = await listSessions(folder);
  const bytes = sessions.reduce((sum, session) => sum + session.bytes, 0);
  return { folder, files: sessions.length, bytes };
}

function platformText(): string {
  const glibc = glibcVersion();
  const parts = [`${process.platform}-${process.arch}`, `node ${process.versions.node}`];
  if (glibc !== undefined) parts.push(`glibc ${glibc}`);
  return parts.join(', ');
}
