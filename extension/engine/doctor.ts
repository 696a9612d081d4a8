/** `doctor`: what this machine can run, and the way out of what it cannot. */
import type { ModelSpec, NativeModel, Place } from './addon';
import type { CudaState } from './cudaProbe';
import { isCancelled, toErrorInfo } from './errors';
import type { JobContext } from './job';
import type { JobsParts } from './jobs';
import { unlessAborted, type ModelKeeper } from './loading';
import type {
  DeviceMemory,
  DeviceReport,
  DoctorRequest,
  DoctorResult,
  EngineErrorInfo,
  ModelReport,
} from './protocol';
import { listSessions, sessionsFolder } from './sessionStore';
import { glibcVersion } from './system';

/** Fails only when cancelled: whatever else goes wrong is a line of `problems`. */
export async function runDoctor(
  request: DoctorRequest,
  { addon, cuda, version }: Pick<JobsParts, 'addon' | 'cuda' | 'version'>,
  keeper: ModelKeeper,
  context: JobContext,
): Promise<DoctorResult> {
  const result: DoctorResult = {
    version,
    platform: platformText(),
    devices: [],
    cpuFeatures: [],
    kernels: { attention: '', linear: '' },
    memory: [],
    sessions: await savedSessions(),
    problems: [],
  };
  const gpus = await unlessAborted(context.signal, cuda.fresh());
  try {
    const machine = addon().machine();
    const reason = `${machine.physicalCores} cores, ${machine.kernels.attention} attention kernel`;
    result.devices = [{ name: 'cpu', usable: true, reason }, ...gpuReports(gpus)];
    result.cpuFeatures = machine.cpuFeatures;
    result.kernels = machine.kernels;
  } catch (error) {
    const problem = toErrorInfo(error);
    result.devices = [{ name: 'cpu', usable: false, reason: problem.message }, ...gpuReports(gpus)];
    result.problems.push(problem);
    return result;
  }
  result.problems.push(...gpuProblems(gpus, request));
  if (request.model === null) return result;
  try {
    const { model } = await keeper.openModel(request.model, context.signal);
    result.model = reportOf(model.spec);
    for (const place of placesOf(gpus, request)) {
      try {
        result.memory.push(memoryOn(place, model, request));
      } catch (error) {
        const problem = toErrorInfo(error);
        result.problems.push({ ...problem, message: `${deviceName(place)}: ${problem.message}` });
      }
    }
  } catch (error) {
    if (isCancelled(error)) throw error;
    result.problems.push(toErrorInfo(error));
  }
  return result;
}

function gpuReports({ usable, refused, problem }: CudaState): DeviceReport[] {
  const reports = [
    ...usable.map(({ index, name, computeCapability, totalBytes, freeBytes }) => ({
      name: deviceName({ backend: 'cuda', device: index }),
      usable: true,
      reason:
        `${name}, compute capability ${computeCapability}, ` +
        `${gib(freeBytes)} of ${gib(totalBytes)} GiB free`,
    })),
    ...refused.map(({ index, name, reason }) => ({
      name: deviceName({ backend: 'cuda', device: index }),
      usable: false,
      reason: `${name}, ${reason}`,
    })),
  ];
  if (reports.length > 0 || problem === null) return reports;
  return [{ name: 'cuda', usable: false, reason: problem.message }];
}

/** What a person can do about a GPU that does not work, or that is asked for where there is none. */
function gpuProblems({ problem }: CudaState, { model }: DoctorRequest): EngineErrorInfo[] {
  const backend = model?.backend ?? 'auto';
  if (problem === null || backend === 'cpu') return [];
  if (backend === 'auto' && !problem.fixable) return [];
  const { message, action } = problem;
  return [{ code: 'deviceUnavailable', message, action: action || 'Use the backend cpu or auto.' }];
}

function placesOf({ usable }: CudaState, { model }: DoctorRequest): Place[] {
  const gpus: Place[] = usable.map(({ index }) => ({ backend: 'cuda', device: index }));
  const cpu: Place = { backend: 'cpu', device: 0 };
  if (model?.backend === 'cpu') return [cpu];
  return model?.backend === 'cuda' ? gpus : [...gpus, cpu];
}

function memoryOn(place: Place, model: NativeModel, request: DoctorRequest): DeviceMemory {
  const { params } = request;
  const { kvCache, contextTokens } = request.model!;
  const estimate = model.estimateMemory({
    ...place,
    contextTokens: contextTokens || model.spec.contextTokens,
    params,
    kvCache,
  });
  return { device: deviceName(place), ...estimate, kvCache };
}

function deviceName({ backend, device }: Place): string {
  return backend === 'cpu' ? 'cpu' : `cuda:${device}`;
}

function gib(bytes: number): string {
  return (bytes / 2 ** 30).toFixed(1);
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
