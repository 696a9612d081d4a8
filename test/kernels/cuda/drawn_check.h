#pragma once

#include <cstdint>

namespace longsight::cuda::test {

// Lists of launchDrawnVotes at 131,072 rows: density within 2 % of the wanted one, the spread of
// the heads, the same bits twice. Prints a line a case; the number of failures.
int checkDrawnVotes(uint64_t seed);

}  // namespace longsight::cuda::test
