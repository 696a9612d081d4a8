// A CacheLedger as bytes, for the file of a saved session.
#pragma once

#include <string>
#include <vector>

#include "session/cache_ledger.h"

namespace longsight {

// What a ledger must fit to be taken for one of this session.
struct LedgerLimits {
  int32_t layers = 0;
  int32_t heads = 0;
  int32_t vocabulary = 0;
};

std::vector<std::byte> encodeLedger(const CacheLedger& ledger);

// The bytes may come from anywhere: every value is checked before it is used, so that whatever is
// returned is a ledger that this session could have made. Throws Error damagedSessionFile; `path`
// is for its message.
CacheLedger decodeLedger(std::span<const std::byte> bytes, const LedgerLimits& limits,
                         const std::string& path);

}  // namespace longsight
