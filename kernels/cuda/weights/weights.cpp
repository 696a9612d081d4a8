#include "weights/weights.h"

#include "weights/matrix_layout.h"

namespace longsight::cuda {

bool isDeviceWeightType(int32_t type) {
  return plainElementBytes(type) > 0 || dispatchBlocks(type, []<int32_t>() {});
}

std::string validateMatrix(int32_t type, int64_t rows, int64_t columns) {
  if (!isDeviceWeightType(type)) {
    return "weights of ggml type " + std::to_string(type) + " have no kernels on the GPU";
  }
  if (rows < 1 || columns < 1) {
    return "a matrix of " + std::to_string(rows) + " x " + std::to_string(columns) + " is empty";
  }
  int multiple = 8;
  dispatchBlocks(type, [&]<int32_t kType>() { multiple = BlockFormat<kType>::kBlockColumns; });
  if (columns % multiple != 0) {
    return "a matrix of ggml type " + std::to_string(type) + " has " + std::to_string(columns) +
           " columns, which is no multiple of " + std::to_string(multiple);
  }
  return {};
}

int64_t fileRowBytes(int32_t type, int64_t columns) {
  int64_t bytes = columns * plainElementBytes(type);
  dispatchBlocks(type, [&]<int32_t kType>() {
    bytes = columns / BlockFormat<kType>::kBlockColumns * BlockFormat<kType>::kBlockBytes;
  });
  return bytes;
}

int64_t deviceMatrixBytes(int32_t type, int64_t rows, int64_t columns) {
  if (!validateMatrix(type, rows, columns).empty()) return 0;
  int64_t bytes = rows * columns * plainElementBytes(type);
  dispatchBlocks(type, [&]<int32_t kType>() {
    using F = BlockFormat<kType>;
    bytes = ceilDiv(rows, kTileRows) * unitsPerTile<F>(columns) * F::kUnitBytes;
  });
  return bytes;
}

}  // namespace longsight::cuda
