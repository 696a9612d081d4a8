#include "cuda/model.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "cuda/block_reader.h"
#include "error.h"

namespace longsight {
namespace {

static_assert(static_cast<int>(Matrix::query) == LS_QUERY &&
              static_cast<int>(Matrix::attentionOutput) == LS_ATTENTION_OUTPUT &&
              static_cast<int>(Matrix::down) == LS_DOWN);
static_assert(static_cast<int>(Norm::attention) == LS_NORM_ATTENTION &&
              static_cast<int>(Norm::attentionOutput) == LS_NORM_ATTENTION_OUTPUT &&
              static_cast<int>(Norm::feedForwardOutput) == LS_NORM_FEED_FORWARD_OUTPUT);

// How long a cancel may go unseen while the disk is slow.
constexpr std::chrono::milliseconds kPatience{20};

}  // namespace

CudaModelDesc::CudaModelDesc(const ModelSpec& spec, int32_t device) {
  add(spec, "token_embd.weight", {.role = LS_TOKEN_EMBEDDING, .rows = spec.vocabulary});
  add(spec, "output.weight", {.role = LS_OUTPUT, .rows = spec.vocabulary});
  add(spec, "output_norm.weight", {.role = LS_OUTPUT_NORM, .columns = spec.embedding});
  add(spec, "output.bias", {.role = LS_OUTPUT_BIAS, .columns = spec.vocabulary});
  for (int32_t layer = 0; layer < spec.layers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    for (const NormTensor& tensor : spec.layerTensors.norms)
      add(spec, prefix + std::string(tensor.name) + ".weight",
          {.role = LS_LAYER_NORM,
           .layer = layer,
           .part = static_cast<int32_t>(tensor.norm),
           .columns = tensor.length});
    for (const MatrixTensor& tensor : spec.layerTensors.matrices) {
      const std::string name = prefix + std::string(tensor.name);
      int64_t row = 0;
      for (const MatrixTensor::Part& part : tensor.parts) {
        const auto index = static_cast<int32_t>(part.matrix);
        add(spec, name + ".weight",
            {.role = LS_LAYER_MATRIX, .layer = layer, .part = index, .rows = part.rows}, row);
        add(spec, name + ".bias",
            {.role = LS_LAYER_BIAS, .layer = layer, .part = index, .columns = part.rows}, row);
        row += part.rows;
      }
    }
  }
  desc_ = {device,           spec.layers,
           spec.heads,       spec.kvHeads,
           spec.headDim,     spec.embedding,
           spec.feedForward, spec.vocabulary,
           spec.normEpsilon, spec.attentionScale,
           tensors_.data(),  static_cast<int32_t>(tensors_.size())};
}

// Nothing when the file has no such tensor. Of a vector, `firstRow` counts elements.
void CudaModelDesc::add(const ModelSpec& spec, const std::string& name, LsTensorDesc desc,
                        int64_t firstRow) {
  const auto found = std::find_if(spec.tensors.begin(), spec.tensors.end(),
                                  [&](const TensorSource& tensor) { return tensor.name == name; });
  if (found == spec.tensors.end()) return;
  const bool isMatrix = desc.rows > 0;
  if (isMatrix)
    desc.columns = found->shape[0];
  else
    desc.rows = 1;
  desc.type = found->type;
  Source source;
  source.tensor = static_cast<size_t>(found - spec.tensors.begin());
  source.rowBytes = ggml_row_size(found->type, desc.columns);
  source.bytes = source.rowBytes * static_cast<uint64_t>(desc.rows);
  source.begin = static_cast<uint64_t>(firstRow) * (isMatrix ? source.rowBytes : sizeof(float));
  tensors_.push_back(desc);
  sources_.push_back(source);
}

CudaModel::CudaModel(const ModelSpec& spec, const LsDevice& device)
    : spec_(spec),
      device_(device),
      library_(CudaLibrary::get()),
      leastFreeBytes_(device.freeBytes) {}

uint64_t CudaModel::peakBytes(uint64_t freeBytes) {
  uint64_t least = leastFreeBytes_;
  while (freeBytes < least && !leastFreeBytes_.compare_exchange_weak(least, freeBytes)) {
  }
  return device_.freeBytes - leastFreeBytes_;
}

CudaModel::~CudaModel() { library_->modelDestroy(handle_); }

std::shared_ptr<CudaModel> CudaModel::load(
    const ModelSpec& spec, const LsDevice& device, uint64_t seed, const CancelFlag& cancel,
    const std::function<void(uint64_t, uint64_t)>& onProgress) {
  const std::shared_ptr<CudaModel> model(new CudaModel(spec, device));
  const CudaModelDesc desc(spec, device.ordinal);
  callCuda(model->library_->modelCreate, desc.get(), &model->handle_);
  model->weightBytes_ = model->library_->modelWeightBytes(model->handle_);
  if (spec.path.empty()) {
    callCuda(model->library_->modelFillRandom, model->handle_, seed);
    if (onProgress) onProgress(spec.weightBytes, spec.weightBytes);
  } else {
    model->upload(desc, cancel, onProgress);
  }
  return model;
}

void CudaModel::upload(const CudaModelDesc& desc, const CancelFlag& cancel,
                       const std::function<void(uint64_t, uint64_t)>& onProgress) {
  const std::vector<TensorBlock> blocks = blocksOf(spec_);
  checksums_.resize(blocks.size());
  // By tensor of the file: the tensors of the device that it fills.
  std::vector<std::vector<size_t>> targets(spec_.tensors.size());
  for (size_t i = 0; i < desc.sources().size(); ++i) targets[desc.sources()[i].tensor].push_back(i);

  BlockReader reader(spec_, blocks);
  uint64_t doneBytes = 0;
  for (size_t done = 0; done < blocks.size();) {
    if (cancel.isSet()) throw cancelledError();
    const std::optional<BlockReader::Item> item = reader.next(kPatience);
    if (!item) continue;
    const TensorBlock& block = blocks[item->index];
    for (const size_t target : targets[block.tensor]) {
      const CudaModelDesc::Source& source = desc.sources()[target];
      const uint64_t begin = std::max(source.begin, block.offset);
      const uint64_t end = std::min(source.begin + source.bytes, block.offset + block.bytes);
      if (begin >= end) continue;
      callCuda(library_->modelUpload, handle_, static_cast<int32_t>(target),
               static_cast<int64_t>((begin - source.begin) / source.rowBytes),
               static_cast<int64_t>((end - begin) / source.rowBytes),
               static_cast<const void*>(item->data + (begin - block.offset)));
    }
    checksums_[item->index] = item->checksum;
    reader.release(*item);
    doneBytes += block.bytes;
    ++done;
    if (onProgress) onProgress(doneBytes, spec_.weightBytes);
  }
}

}  // namespace longsight
