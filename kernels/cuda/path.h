// Which implementation of a kernel runs.
#pragma once

namespace longsight::cuda {

// `best` takes wgmma and TMA where the device has them (sm_90a), mma.sync elsewhere.
enum class Path { best, mmaSync };

}  // namespace longsight::cuda
