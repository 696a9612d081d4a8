#include "error.h"
#include "session/session.h"
#include "session/session_file.h"

namespace longsight {

SessionKey Session::key() const {
  const ModelSpec& spec = model_->spec();
  // LongRoPE turns the same row differently in a long context.
  const bool longFactors = spec.find("rope_factors_long.weight") != nullptr &&
                           contextTokens() > spec.rope.originalContextTokens;
  return {model_->identity() + (longFactors ? 1 : 0),
          backend_->identity(),
          options_.ropeBaseScale,
          static_cast<int32_t>(options_.kvCache),
          spec.layers,
          spec.kvHeads,
          spec.headDim};
}

SavedRows Session::save(const std::string& path, int64_t rows, const FileProgress& onProgress) {
  if (forcedDensity_)
    throw Error(ErrorCode::invalidParams, "Rows computed at a forced density are not saved.",
                "Ask without forcedDensity first.");
  CacheLedger ledger = ledger_;
  ledger.truncate(rows);
  if (ledger.rows() == 0)
    throw Error(ErrorCode::invalidParams, "There is nothing to save: the session holds no rows.",
                "Save after a question was answered.");
  return {ledger.rows(), writeSessionFile(path, key(), ledger, *backend_, cancel_, onProgress)};
}

uint64_t Session::savedBytes(int64_t rows) const {
  CacheLedger ledger = ledger_;
  ledger.truncate(rows);
  return sessionFileBytes(ledger, *backend_);
}

SavedRows Session::restore(const std::string& path, const FileProgress& onProgress) {
  const ModelSpec& spec = model_->spec();
  uint64_t bytes = 0;
  ledger_ = readSessionFile(
      path, key(), {spec.layers, spec.heads, spec.vocabulary}, contextTokens(), *backend_,
      [this] { reset(); }, cancel_,
      [&](uint64_t done, uint64_t total) {
        bytes = total;
        if (onProgress) onProgress(done, total);
      });
  forcedDensity_.reset();
  return {ledger_.rows(), bytes};
}

}  // namespace longsight
