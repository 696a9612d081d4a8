// The file of a saved session: what the rows of a KV cache are, and the rows.
//
// All numbers are little-endian. A file is written once, in one go, and never changed.
//
//   header      256 bytes: struct Header in session_file.cpp. The magic and the version come first
//               and stay where they are in every version; the last 8 bytes are the XXH64 of the
//               others. It names what the rows belong to (SessionKey), how many there are, and the
//               length of the stream, which together with the blocks gives the length of the file.
//   stream      in blocks of 1 MiB, the last one shorter, each followed by 8 bytes: the XXH64 of
//   the
//               block with the file's random seed plus the block's number. It consists of
//     ledger    tokens and how each run of rows was computed (ledger_codec.h)
//     rows      plane after plane, in the order in which the cache has them: rows [0, n) of a
//               plane next to each other, rowBytes each, as they lie in memory. Rows that are
//               not used are not written, so that the capacity of the cache does not matter.
//
// A file that is torn, truncated or longer than it says, or in which a bit has changed, is refused
// as damaged; one with right checksums and wrong contents too, before anything is believed. The
// rows themselves may be any bits: at worst they give a wrong answer, or a NaN that the sampler
// refuses. What was computed by another model, build, kind of processor or cache type is refused as
// another's. A file of another kind is refused as well, and never overwritten.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "cpu/cancel_flag.h"
#include "session/cache_ledger.h"
#include "session/cache_rows.h"
#include "session/ledger_codec.h"

namespace longsight {

// Two sessions with the same key can read each other's rows.
struct SessionKey {
  // Model::identity().
  uint64_t model = 0;
  // Backend::identity().
  uint64_t build = 0;
  double ropeBaseScale = 1;
  // KvType as a number, and the shape of the cache.
  int32_t kvType = 0;
  int32_t layers = 0;
  int32_t kvHeads = 0;
  int32_t headDim = 0;
};

// Of the whole file; called on the calling thread, every MiB.
using FileProgress = std::function<void(uint64_t doneBytes, uint64_t totalBytes)>;

// Length of the file that writeSessionFile would make.
uint64_t sessionFileBytes(const CacheLedger& ledger, const CacheRows& cache);

// Writes all rows of the ledger. `path` is replaced in one step, readable by this user only; until
// then, and when this throws, it stays as it was. Returns the length of the file. Throws Error
// writeFailed, cancelled, and notSessionFile where `path` is a file of another kind.
uint64_t writeSessionFile(const std::string& path, const SessionKey& key, const CacheLedger& ledger,
                          const CacheRows& cache, const CancelFlag& cancel,
                          const FileProgress& onProgress);

// Reads all rows into `cache` and returns what they are. `begin` is called once everything but the
// rows is known to be right: when it is not called, `cache` is untouched; when this throws after
// it, its first rows are undefined. Throws Error unreadableFile, notSessionFile,
// damagedSessionFile, otherSessionFile (also when the rows are more than `capacityRows`),
// cancelled.
CacheLedger readSessionFile(const std::string& path, const SessionKey& key,
                            const LedgerLimits& limits, int64_t capacityRows, CacheRows& cache,
                            const std::function<void()>& begin, const CancelFlag& cancel,
                            const FileProgress& onProgress);

}  // namespace longsight
