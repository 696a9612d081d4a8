// Stages 1 and 2 of SampleAttention: which columns a head keeps for a segment.
#include <array>
#include <bit>
#include <cmath>

#include "cpu/segment_run.h"

namespace longsight {
namespace {

// Rows of an item that sums whole rows: so many share a packed tile of keys.
constexpr int64_t kSumRows = 128;

}  // namespace

bool SegmentRun::selectColumns() {
  const int32_t kvHeads = task_.kv.kvHeads;
  const int64_t blocks = remoteEnd_ / kTileRows;
  scratch_.sinkTokens = task_.params->sinkTokens;
  scratch_.columnStride = remoteEnd_ + scratch_.sinkTokens;
  scratch_.blockStride = blocks + 1;
  scratch_.columns.reserve(task_.heads * scratch_.columnStride);
  scratch_.countBefore.reserve(task_.heads * scratch_.blockStride);
  scratch_.voterQueries.reserve(task_.heads * voterSlots_ * kernels_.rowBytes(scoreDims_.count()));
  scratch_.references.reserve(task_.heads * voterSlots_);
  scratch_.votes.reserve(task_.heads * remoteEnd_);
  std::fill_n(scratch_.references.data(), task_.heads * voterSlots_, kInfinity);

  if (remoteEnd_ > scratch_.sinkTokens) {
    // Only voters that see a remote column matter.
    const int64_t first = firstVoterBeyond(scratch_.sinkTokens);
    const auto voters = static_cast<int64_t>(voters_.size());
    const int64_t chunkVoters = std::max<int64_t>(1, kSumRows / groupHeads_);
    const int64_t chunks =
        usesMass() ? (voters - first + chunkVoters - 1) / chunkVoters : tileCount();
    pool_.forEach(task_.heads + chunks * kvHeads, [&](int64_t item, int32_t thread) {
      if (cancel_.isSet()) return;
      ThreadScratch& s = scratch_.threads[static_cast<size_t>(thread)];
      const auto kvHead = static_cast<int32_t>(item % kvHeads);
      // Later rows see more columns: they come first.
      const int64_t chunk = chunks - 1 - item / kvHeads;
      if (chunk < 0) return packVoters(static_cast<int32_t>(item - chunks * kvHeads));
      if (!usesMass()) return anchorVoters(votersOfTile(firstTile_ + chunk), kvHead, s);
      const int64_t begin = first + chunk * chunkVoters;
      sumVoters({begin, std::min(begin + chunkVoters, voters)}, kvHead, s);
    });
    pool_.forEach(blocks * kvHeads, [&](int64_t item, int32_t thread) {
      if (cancel_.isSet()) return;
      vote(item / kvHeads, static_cast<int32_t>(item % kvHeads),
           scratch_.threads[static_cast<size_t>(thread)]);
    });
  }
  if (cancel_.isSet()) return false;
  const auto listAll = [&] {
    pool_.forEach(task_.heads,
                  [&](int64_t head, int32_t) { listColumns(static_cast<int32_t>(head)); });
    return !cancel_.isSet();
  };
  if (!listAll()) return false;
  if (!task_.draw) return true;
  drawVotes();
  return listAll();
}

// Overwrites the votes: 1 for a column that the list is to hold, else 0.
void SegmentRun::drawVotes() {
  const std::vector<uint32_t> limits =
      drawnLimits({&task_.segment, 1}, task_.heads, task_.params->sinkTokens,
                  task_.params->maxListShare, *task_.draw);
  pool_.forEach(task_.heads, [&](int64_t head, int32_t) {
    const uint64_t seed = listSeed(task_.draw->seed, task_.draw->layer, task_.segment.begin,
                                   static_cast<int32_t>(head));
    float* votes = scratch_.votes.data() + head * remoteEnd_;
    for (int64_t column = 0; column < remoteEnd_; column += 2) {
      const uint32_t pair =
          drawnPair(seed, static_cast<uint64_t>(column), limits[static_cast<size_t>(head)]);
      votes[column] = static_cast<float>(pair & 1);
      votes[column + 1] = static_cast<float>(pair >> 1);
    }
  });
  isDrawn_ = true;
}

// The first voter whose window starts after `column`.
int64_t SegmentRun::firstVoterBeyond(int64_t column) const {
  const auto voter = std::partition_point(voters_.begin(), voters_.end(),
                                          [&](int64_t row) { return windowOf(row) <= column; });
  return voter - voters_.begin();
}

SegmentRun::VoterRange SegmentRun::votersOfTile(int64_t tile) const {
  const auto begin = std::lower_bound(voters_.begin(), voters_.end(), tile * kTileRows);
  const auto end = std::lower_bound(begin, voters_.end(), (tile + 1) * kTileRows);
  return {begin - voters_.begin(), end - voters_.begin()};
}

void SegmentRun::packVoters(int32_t head) {
  const int64_t rowBytes = kernels_.rowBytes(scoreDims_.count());
  std::byte* packed = scratch_.voterQueries.data() + head * voterSlots_ * rowBytes;
  const float* rows[16];
  for (int64_t first = 0; first < voterSlots_; first += blockRows()) {
    for (int64_t i = 0; i < blockRows(); ++i) {
      const auto voter = static_cast<size_t>(first + i);
      rows[i] = voter < voters_.size() ? query(voters_[voter], head) : nullptr;
    }
    kernels_.packQueries(rows, 1, scoreDims_, scale_, packed + first * rowBytes);
  }
}

// Slots [head][voter] for the heads of a group, which see everything up to themselves; returns the
// number of blocks.
int32_t SegmentRun::placeVoters(ThreadScratch& s, VoterRange voters, int32_t kvHead) const {
  int64_t slot = 0;
  for (int32_t head = kvHead * groupHeads_; head < (kvHead + 1) * groupHeads_; ++head) {
    for (int64_t voter = voters.begin; voter < voters.end; ++voter, ++slot) {
      const int64_t row = voters_[static_cast<size_t>(voter)];
      s.rows.data()[slot] = query(row, head);
      s.seesFrom.data()[slot] = 0;
      s.seesTo.data()[slot] = row + 1;
    }
  }
  const auto blocks = static_cast<int32_t>(roundUp(slot, blockRows()) / blockRows());
  for (; slot < int64_t{blocks} * blockRows(); ++slot) {
    s.rows.data()[slot] = nullptr;
    s.seesFrom.data()[slot] = 0;
    s.seesTo.data()[slot] = task_.segment.end;
  }
  startRows(s, blocks, false);
  return blocks;
}

// The log-sum-exp (base 2) of what the slots of placeVoters have visited.
void SegmentRun::keepReferences(const ThreadScratch& s, VoterRange voters, int32_t kvHead) {
  const int64_t count = voters.end - voters.begin;
  for (int64_t slot = 0; slot < groupHeads_ * count; ++slot) {
    const int64_t head = kvHead * groupHeads_ + slot / count;
    scratch_.references.data()[head * voterSlots_ + voters.begin + slot % count] =
        s.maximum.data()[slot] + std::log2(s.sum.data()[slot]);
  }
}

// Policy peak, for voters of one tile: exact scores over window and sinks.
void SegmentRun::anchorVoters(VoterRange voters, int32_t kvHead, ThreadScratch& s) {
  if (voters.begin == voters.end) return;
  const int64_t window = windowOf(voters_[static_cast<size_t>(voters.begin)]);
  if (window <= scratch_.sinkTokens) return;  // nothing is remote for these rows
  const int32_t blocks = placeVoters(s, voters, kvHead);
  visit(s, kvHead, {nullptr, 0, scratch_.sinkTokens}, {0, blocks}, false);
  const int64_t end = voters_[static_cast<size_t>(voters.end - 1)] + 1;
  visit(s, kvHead, {nullptr, window, end}, {0, blocks}, false);
  keepReferences(s, voters, kvHead);
}

// Policy mass: exact scores over all columns.
void SegmentRun::sumVoters(VoterRange voters, int32_t kvHead, ThreadScratch& s) {
  const int32_t blocks = placeVoters(s, voters, kvHead);
  const int64_t end = voters_[static_cast<size_t>(voters.end - 1)] + 1;
  visit(s, kvHead, {nullptr, 0, end}, {0, blocks}, false);
  keepReferences(s, voters, kvHead);
}

void SegmentRun::vote(int64_t block, int32_t kvHead, ThreadScratch& s) {
  const int32_t dims = scoreDims_.count();
  const int64_t rowBytes = kernels_.rowBytes(dims);
  // Windows start later in later rows: the voters from this one on see the block as remote.
  const int64_t firstVoter = firstVoterBeyond(block * kTileRows);
  const int64_t firstSlot = firstVoter / blockRows() * blockRows();
  const auto blocks = static_cast<int32_t>((voterSlots_ - firstSlot) / blockRows());
  const auto addVotes = usesMass() ? kernels_.masses : kernels_.peaks;

  for (int64_t column = block * kTileRows; column < (block + 1) * kTileRows; column += kTileKeys) {
    if (cancel_.isSet()) return;
    const KeyRows keys{task_.kv.keysOf(kvHead), nullptr, column, kTileKeys};
    kernels_.packKeys(keys, scoreDims_, s.keys.data());
    for (int32_t head = kvHead * groupHeads_; head < (kvHead + 1) * groupHeads_; ++head) {
      const float* references = scratch_.references.data() + head * voterSlots_ + firstSlot;
      float* votes = scratch_.votes.data() + head * remoteEnd_ + column;
      std::fill_n(votes, kTileKeys, usesMass() ? 0.0f : -kInfinity);
      float firstReferences[16];
      for (int32_t i = 0; i < blockRows(); ++i) {
        firstReferences[i] = firstSlot + i < firstVoter ? kInfinity : references[i];
      }
      const std::byte* queries =
          scratch_.voterQueries.data() + (head * voterSlots_ + firstSlot) * rowBytes;
      addVotes({queries, 1, dims, scale_, firstReferences, s.keys.data(), votes});
      addVotes({queries + blockRows() * rowBytes, blocks - 1, dims, scale_,
                references + blockRows(), s.keys.data(), votes});
    }
  }
}

SegmentRun::Cut SegmentRun::peakCut(int32_t head) const {
  const double epsilon = task_.epsilons.empty() ? task_.params->epsilon
                                                : double{task_.epsilons[static_cast<size_t>(head)]};
  return {std::log2(epsilon), std::numeric_limits<int64_t>::max()};
}

// Free mass and all masses make one a voter, so that the smallest set that reaches alpha leaves out
// the most columns, the lightest first, that together hold at most 1 - alpha. Floats that are not
// negative are ordered as their bits: the cut is found by histograms of 11, 11 and 10 bits.
SegmentRun::Cut SegmentRun::massCut(const float* masses) const {
  const double alpha = task_.params->alpha;
  if (alpha == 1.0) return {-kInfinity, 0};
  double room = (1.0 - alpha) * static_cast<double>(voters_.size());
  uint32_t prefix = 0;
  int64_t equal = 0;
  int prefixShift = 32;
  for (const int width : {11, 11, 10}) {
    const int shift = prefixShift - width;
    std::array<double, 2048> sums{};
    std::array<int64_t, 2048> counts{};
    for (int64_t column = scratch_.sinkTokens; column < remoteEnd_; ++column) {
      const auto bits = uint64_t{std::bit_cast<uint32_t>(masses[column])};
      if (bits >> prefixShift != prefix) continue;
      const size_t bin = bits >> shift & ((1u << width) - 1);
      sums[bin] += masses[column];
      ++counts[bin];
    }
    size_t last = 2047;
    while (last > 0 && counts[last] == 0) --last;
    size_t bin = 0;
    while (bin < last && sums[bin] <= room) room -= sums[bin++];
    // Only at first: the bin that was too heavy as a whole is so in parts, but for rounding.
    if (prefixShift == 32 && sums[bin] <= room) return {kInfinity, 0};
    prefix = prefix << width | static_cast<uint32_t>(bin);
    prefixShift = shift;
    equal = counts[bin];
  }
  const double mass = std::bit_cast<float>(prefix);
  const double left = std::min(static_cast<double>(equal), std::floor(room / mass));
  return {mass, equal - static_cast<int64_t>(left)};
}

void SegmentRun::listColumns(int32_t head) {
  const int32_t sinks = scratch_.sinkTokens;
  const float* votes = scratch_.votes.data() + head * remoteEnd_;
  int32_t* columns = scratch_.columns.data() + head * scratch_.columnStride;
  int32_t* before = scratch_.countBefore.data() + head * scratch_.blockStride;
  Cut cut = isDrawn_ ? Cut{0, 0} : usesMass() ? massCut(votes) : peakCut(head);

  int32_t count = 0;
  for (; count < sinks; ++count) columns[count] = count;
  before[0] = 0;
  for (int64_t column = 0; column < remoteEnd_; ++column) {
    const double vote = votes[column];
    if (column >= sinks && (vote > cut.vote || (vote == cut.vote && cut.equal-- > 0))) {
      columns[count++] = static_cast<int32_t>(column);
    }
    if ((column + 1) % kTileRows == 0) before[(column + 1) / kTileRows] = count;
  }
  const int64_t length = count - sinks;
  HeadAttention& result = heads_[static_cast<size_t>(head)];
  result.listLength = length;
  result.denseFallback = static_cast<double>(length) >
                         task_.params->maxListShare * static_cast<double>(task_.segment.end);
  scratch_.isDense[static_cast<size_t>(head)] = result.denseFallback;
  scratch_.listLength[static_cast<size_t>(head)] = length;
}

}  // namespace longsight
