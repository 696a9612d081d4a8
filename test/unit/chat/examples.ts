/** Values as the engine would send them. */
import { defaultParams } from '../../../extension/engine/params';
import type { Citation, Event, Stats } from '../../../extension/engine/protocol';

export function exampleStats(): Stats {
  return {
    model: 'SmolLM2 135M Instruct',
    backend: 'cpu',
    device: 'CPU',
    fallback: '',
    speculation: null,
    times: null,
    params: { ...defaultParams },
    promptTokens: 6312,
    reusedTokens: 4096,
    computedTokens: 2216,
    prefillTokensPerSecond: 772,
    decodeTokensPerSecond: 38.2,
    kvCache: 'bf16',
    thinking: null,
    ttftMs: 3234,
    phases: {
      queueMs: 2,
      loadMs: 210,
      scanMs: 34,
      tokenizeMs: 88,
      prefillMs: 2870,
      firstTokenMs: 30,
    },
    attention: {
      density: 0.41,
      sparseDensity: 0.16,
      coverageMean: 0.981,
      coverageP5: 0.934,
      layers: [{ density: 0.16, heads: [0.1, 0.22, null] }],
    },
    memory: { weightBytes: 96e6, kvBytes: 190e6, scratchBytes: 44e6, fixedBytes: 0 },
  };
}

export function exampleCitation(some: Partial<Citation> = {}): Citation {
  return {
    path: 'src/a.ts',
    quote: 'const a = 1',
    startLine: 3,
    endLine: 3,
    status: 'verified',
    absolutePath: '/work/src/a.ts',
    ...some,
  };
}

type Unaddressed<T> = T extends unknown ? Omit<T, 'sessionId' | 'requestId'> : never;

export function event(body: Unaddressed<Event>): Event {
  return { sessionId: 's', requestId: 'r', ...body } as Event;
}

export function resultEvent(answer: string, citations: Citation[] = []): Event {
  return event({
    type: 'result',
    result: {
      answer,
      thinking: '',
      citations,
      citationSpans: citations.map(() => ({ start: 0, end: 0 })),
      files: { full: 3, path: 1, out: 0 },
      stopReason: 'end',
      stats: exampleStats(),
    },
  });
}
