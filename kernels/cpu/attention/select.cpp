#include "kernels/cpu/attention/kernels.h"

namespace longsight {

#if !defined(__x86_64__)
const AttentionKernels* avx2AttentionKernels() { return nullptr; }
#endif

const AttentionKernels& attentionKernels(InstructionSet set) {
  const AttentionKernels* best = portableAttentionKernels();
  for (const AttentionKernels* kernels : {avx2AttentionKernels()}) {
    if (kernels != nullptr && kernels->set <= set) best = kernels;
  }
  return *best;
}

}  // namespace longsight
