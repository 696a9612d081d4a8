// Files of saved sessions: what is written comes back, and nothing else is believed.
#include "session/session_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "error.h"
#include "session/checked_stream.h"
#include "session/checksum.h"
#include "temporary.h"

namespace longsight::test {
namespace {

namespace fs = std::filesystem;

constexpr LedgerLimits kLimits{.layers = 3, .heads = 4, .vocabulary = 1000};
constexpr SessionKey kKey{.model = 11,
                          .build = 22,
                          .ropeBaseScale = 1,
                          .kvType = 0,
                          .layers = 3,
                          .kvHeads = 2,
                          .headDim = 64};
constexpr uint64_t kRowBytes = 128;

// A cache of 3 layers and 2 KV heads in plain memory.
struct Cache final : CacheRows {
  explicit Cache(int64_t rows, std::byte fill = std::byte{0xA5})
      : capacity(rows), memory(12 * static_cast<size_t>(rows) * kRowBytes, fill) {}
  std::vector<uint64_t> planeRowBytes() const override {
    return std::vector<uint64_t>(12, kRowBytes);
  }
  void readRows(size_t plane, int64_t first, int64_t rows, std::byte* target) const override {
    std::memcpy(target, rowsOf(plane, first), static_cast<size_t>(rows) * kRowBytes);
  }
  void writeRows(size_t plane, int64_t first, int64_t rows, const std::byte* source) override {
    std::memcpy(memory.data() + placeOf(plane, first), source,
                static_cast<size_t>(rows) * kRowBytes);
  }
  void filled(int64_t rows) override { filledRows = rows; }
  const std::byte* rowsOf(size_t plane, int64_t first) const {
    return memory.data() + placeOf(plane, first);
  }
  size_t placeOf(size_t plane, int64_t first) const {
    return (plane * static_cast<size_t>(capacity) + static_cast<size_t>(first)) * kRowBytes;
  }
  int64_t capacity;
  int64_t filledRows = -1;
  std::vector<std::byte> memory;
};

std::string stringOf(const CacheLedger& ledger) {
  const std::vector<std::byte> bytes = encodeLedger(ledger);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Dense rows, sparse segments with statistics, and dense rows again.
CacheLedger makeLedger(int64_t rows, std::mt19937_64& random) {
  CacheLedger ledger;
  SampleAttentionParams params;
  params.epsilon = 0.0125;
  auto add = [&](int64_t end, bool dense) {
    std::vector<int32_t> tokens(static_cast<size_t>(end - ledger.rows()));
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 1000);
    Segment segment{ledger.rows(), end, dense, dense ? 0 : 8, dense ? 0 : 256};
    SegmentAttention attention(dense ? 0 : 3);
    for (size_t layer = 0; layer + 1 < attention.size(); ++layer) {
      attention[layer].resize(4);
      for (HeadAttention& head : attention[layer])
        head = {.keptPairs = 5,
                .causalPairs = 9,
                .listLength = 1,
                .denseFallback = layer == 1,
                .coverage = {0.5f, 1.0f}};
    }
    ledger.append(segment, tokens, params, end, std::move(attention));
  };
  if (rows > 40) {
    add(rows / 4, true);
    add(rows / 2, false);
    add(rows - 7, false);
  }
  add(rows, true);
  return ledger;
}

struct Refusal {
  ErrorCode code;
  std::string message;
};

template <typename Body>
Refusal refusalOf(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_FALSE(error.action().empty());
    return {error.code(), error.message()};
  }
  ADD_FAILURE() << "no error";
  return {ErrorCode::internal, ""};
}

class SessionFile : public ::testing::Test {
 protected:
  void SetUp() override {
    folder = temporaryPath(::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder);
    path = folder + "/workspace.session";
    for (std::byte& byte : cache.memory) byte = static_cast<std::byte>(random());
  }

  void save(int64_t rows) {
    ledger = makeLedger(rows, random);
    length = writeSessionFile(path, kKey, ledger, cache, never, nullptr);
  }

  CacheLedger read(Cache& into, SessionKey key = kKey) {
    began = false;
    return readSessionFile(
        path, key, kLimits, into.capacity, into, [&] { began = true; }, never, nullptr);
  }

  // Refused, and as long as begin was not called no row was touched.
  Refusal refusal(SessionKey key = kKey) {
    Cache into(kCapacity);
    const Refusal result = refusalOf([&] { read(into, key); });
    if (!began) {
      EXPECT_EQ(into.memory, Cache(kCapacity).memory);
    }
    return result;
  }

  void putBytes(size_t place, const std::string& bytes) const {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(place));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  std::vector<std::string> filesInFolder() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder))
      names.push_back(entry.path().filename());
    return names;
  }

  static constexpr int64_t kCapacity = 3000;
  std::mt19937_64 random{randomSeed()};
  CancelFlag never;
  std::string folder, path;
  Cache cache{kCapacity};
  CacheLedger ledger;
  uint64_t length = 0;
  bool began = false;
};

TEST(Checksum, IsXxh64) {
  auto sum = [](const std::string& text, uint64_t seed = 0) {
    return checksum64(std::as_bytes(std::span(text)), seed);
  };
  // Published values.
  EXPECT_EQ(sum(""), 0xEF46DB3751D8E999u);
  EXPECT_EQ(sum("a"), 0xD24EC4F1A98C6E5Bu);
  EXPECT_EQ(sum("abc"), 0x44BC2CF5AD770999u);
  EXPECT_EQ(sum("Nobody inspects the spammish repetition"), 0xFBCEA83C8A378BF1u);
  EXPECT_NE(sum("abc", 1), sum("abc", 2));
}

TEST_F(SessionFile, ComesBackAsItWas) {
  for (int64_t rows : {1, 37, 1000, 2999, 3000}) {
    save(rows);
    EXPECT_EQ(fs::file_size(path), length);
    EXPECT_EQ(sessionFileBytes(ledger, cache), length);
    // Used rows alone: the file does not grow with the cache.
    EXPECT_LT(length, 12 * static_cast<uint64_t>(rows) * kRowBytes + 20000);
    for (int64_t capacity : {rows, kCapacity + 11}) {
      Cache into(capacity);
      const CacheLedger restored = read(into);
      EXPECT_TRUE(began);
      EXPECT_EQ(stringOf(restored), stringOf(ledger));
      EXPECT_EQ(into.filledRows, rows);
      for (size_t plane = 0; plane < 12; ++plane) {
        const size_t used = static_cast<size_t>(rows) * kRowBytes;
        const std::byte* got = into.rowsOf(plane, 0);
        EXPECT_EQ(std::memcmp(got, cache.rowsOf(plane, 0), used), 0);
        // What lies behind the rows stays.
        if (capacity > rows) {
          EXPECT_EQ(got[used], std::byte{0xA5});
        }
      }
    }
  }
}

TEST_F(SessionFile, BelongsToItsUser) {
  const mode_t before = umask(0);
  save(50);
  umask(before);
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(SessionFile, TellsHowFarItIs) {
  ledger = makeLedger(3000, random);
  uint64_t last = 0, calls = 0;
  auto check = [&](uint64_t done, uint64_t total) {
    EXPECT_GT(done, last);
    EXPECT_LE(done, total);
    last = done;
    ++calls;
  };
  length = writeSessionFile(path, kKey, ledger, cache, never, check);
  EXPECT_GE(calls, 5u);
  EXPECT_GT(last, length - 1000);
  last = 0;
  Cache into(kCapacity);
  readSessionFile(
      path, kKey, kLimits, kCapacity, into, [] {}, never, check);
  EXPECT_GT(last, length - 1000);
}

TEST_F(SessionFile, TornAnywhereIsDamaged) {
  save(3000);
  const std::string whole = readFile(path);
  std::vector<size_t> lengths = {8, 9, 255, 256, 257, whole.size() - 1, whole.size() - 9};
  // Where a disk would tear it.
  for (size_t at = 4096; at < whole.size(); at += 4096) lengths.push_back(at);
  std::sort(lengths.rbegin(), lengths.rend());
  for (size_t cut : lengths) {
    fs::resize_file(path, cut);
    const Refusal result = refusal();
    ASSERT_EQ(result.code, ErrorCode::damagedSessionFile) << cut;
    ASSERT_FALSE(began) << cut;
  }
  writeFile(path, whole + '\0');
  EXPECT_EQ(refusal().code, ErrorCode::damagedSessionFile);
  // The right length, but the end never reached the disk.
  writeFile(path, whole);
  for (size_t at = whole.size() / (256 * 1024) * (256 * 1024); at > 0; at -= 256 * 1024) {
    fs::resize_file(path, at + 512);
    fs::resize_file(path, whole.size());
    ASSERT_EQ(refusal().code, ErrorCode::damagedSessionFile) << at;
  }
}

TEST_F(SessionFile, AFlippedBitAnywhereIsNoticed) {
  save(1500);
  const std::string whole = readFile(path);
  std::vector<size_t> places;
  for (size_t i = 0; i < 300; ++i) places.push_back(i);
  for (int i = 0; i < 400; ++i) places.push_back(random() % whole.size());
  for (size_t i = 1; i < 10; ++i) places.push_back(whole.size() - i);
  for (size_t place : places) {
    putBytes(place, std::string(1, static_cast<char>(whole[place] ^ (1 << random() % 8))));
    const ErrorCode code = refusal().code;
    putBytes(place, whole.substr(place, 1));
    if (place < 8)
      ASSERT_EQ(code, ErrorCode::notSessionFile) << place;
    else if (place < 12)
      ASSERT_EQ(code, ErrorCode::otherSessionFile) << place;
    else
      ASSERT_EQ(code, ErrorCode::damagedSessionFile) << place;
  }
}

TEST_F(SessionFile, BlocksOfAnotherPlaceOrFileAreNoticed) {
  save(3000);
  std::string whole = readFile(path);
  const size_t block = kBlockBytes + 8;
  std::string swapped = whole;
  std::swap_ranges(swapped.begin() + 256,
                   swapped.begin() + 256 + static_cast<std::ptrdiff_t>(block),
                   swapped.begin() + 256 + static_cast<std::ptrdiff_t>(block));
  writeFile(path, swapped);
  EXPECT_EQ(refusal().code, ErrorCode::damagedSessionFile);
  // The same session written again has another seed.
  writeFile(path, whole);
  writeSessionFile(path, kKey, ledger, cache, never, nullptr);
  const std::string again = readFile(path);
  writeFile(path, whole.substr(0, 256 + block) + again.substr(256 + block));
  EXPECT_EQ(refusal().code, ErrorCode::damagedSessionFile);
}

TEST_F(SessionFile, OfAnotherSessionIsRefusedUntouched) {
  save(200);
  const std::vector<std::pair<std::function<void(SessionKey&)>, std::string>> others = {
      {[](SessionKey& key) { ++key.model; }, "another model"},
      {[](SessionKey& key) { ++key.build; }, "another build"},
      {[](SessionKey& key) { key.kvType = 1; }, "another type"},
      {[](SessionKey& key) { key.ropeBaseScale = 4; }, "scale of 1.0"},
  };
  for (const auto& [change, words] : others) {
    SessionKey key = kKey;
    change(key);
    const Refusal result = refusal(key);
    EXPECT_EQ(result.code, ErrorCode::otherSessionFile) << words;
    EXPECT_NE(result.message.find(words), std::string::npos) << result.message;
    EXPECT_FALSE(began);
  }
  Cache small(199);
  const Refusal result = refusalOf([&] { read(small); });
  EXPECT_EQ(result.code, ErrorCode::otherSessionFile);
  EXPECT_NE(result.message.find("200 tokens, but the context holds 199"), std::string::npos);
}

TEST_F(SessionFile, OfAnotherKindIsRefusedAndNeverOverwritten) {
  ledger = makeLedger(50, random);
  for (const std::string& text : {std::string("# Readme\n"), std::string("LSIGHT"),
                                  std::string("GGUF") + std::string(5000, 'x')}) {
    writeFile(path, text);
    EXPECT_EQ(refusal().code, ErrorCode::notSessionFile);
    EXPECT_EQ(refusalOf([&] { writeSessionFile(path, kKey, ledger, cache, never, nullptr); }).code,
              ErrorCode::notSessionFile);
    EXPECT_EQ(readFile(path), text);
  }
  path = folder + "/pipe";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(refusal().code, ErrorCode::notSessionFile) << "and does not wait for a writer";
  path = folder;
  EXPECT_EQ(refusal().code, ErrorCode::notSessionFile);
  path = folder + "/missing";
  EXPECT_EQ(refusal().code, ErrorCode::unreadableFile);
  // A file that was reserved, as mktemp does.
  path = folder + "/empty";
  writeFile(path, "");
  EXPECT_EQ(refusal().code, ErrorCode::notSessionFile);
  save(50);
  Cache into(50);
  EXPECT_EQ(read(into).rows(), 50);
}

// Right checksums over wrong numbers.
TEST_F(SessionFile, HostileHeadersAreRefused) {
  save(300);
  const std::string whole = readFile(path);
  constexpr size_t kChecksum = 248;
  for (int i = 0; i < 1000; ++i) {
    std::string changed = whole.substr(0, 256);
    const size_t field = 12 + 4 * (random() % 21);
    const uint32_t values[] = {0,          1,          0x7fffffff,
                               0x80000000, 0xffffffff, static_cast<uint32_t>(random())};
    std::memcpy(changed.data() + field, &values[random() % 6], 4);
    const uint64_t sum = checksum64(std::as_bytes(std::span(changed)).first(kChecksum), 0);
    std::memcpy(changed.data() + kChecksum, &sum, 8);
    if (changed == whole.substr(0, 256)) continue;
    putBytes(0, changed);
    const ErrorCode code = refusal().code;
    ASSERT_TRUE(code == ErrorCode::damagedSessionFile || code == ErrorCode::otherSessionFile)
        << "field at " << field;
  }
}

TEST_F(SessionFile, HostileLedgersAreRefusedOrSound) {
  const std::string whole = stringOf(makeLedger(300, random));
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string changed = whole;
    // Behind the tokens, most of the time.
    const size_t begin = random() % 4 == 0 ? 0 : 8 + 300 * 4;
    const size_t place = begin + random() % (whole.size() - begin - 8);
    const uint64_t values[] = {
        0, 1, 0x7fffffffffffffff, 0xffffffffffffffff, random(), random() % 512};
    std::memcpy(changed.data() + place, &values[random() % 6], random() % 8 + 1);
    if (random() % 8 == 0) changed.resize(random() % changed.size());
    try {
      const CacheLedger made = decodeLedger(std::as_bytes(std::span(changed)), kLimits, path);
      int64_t row = 0;
      for (const CacheLedger::Run& run : made.runs()) {
        ASSERT_EQ(run.segment.begin, row);
        row = run.segment.end;
        ASSERT_EQ(validate(run.params), "");
      }
      ASSERT_EQ(row, made.rows());
      for (int32_t token : made.tokens()) ASSERT_TRUE(token >= 0 && token < kLimits.vocabulary);
      made.stats(made.rows(), kLimits.layers, kLimits.heads);
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::damagedSessionFile);
      ++refused;
    }
  }
  EXPECT_GT(refused, 5000);
}

TEST_F(SessionFile, AFullDiskIsSaidAndLosesNothing) {
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  CheckedWriter writer(full, {.path = "/dev/full", .seed = 1, .cancel = &never, .onProgress = {}});
  const std::vector<std::byte> block(kBlockBytes);
  const Refusal result = refusalOf([&] { writer.write(block.data(), block.size()); });
  EXPECT_EQ(result.code, ErrorCode::writeFailed);
  EXPECT_NE(result.message.find("No space left"), std::string::npos) << result.message;
  close(full);

  save(100);
  const std::string before = readFile(path);
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit low{2 << 20, limit.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  const Refusal cut = refusalOf([&] { save(3000); });
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(cut.code, ErrorCode::writeFailed);
  EXPECT_EQ(readFile(path), before);
  EXPECT_EQ(filesInFolder().size(), 1u);

  path = folder + "/no/such/folder";
  EXPECT_EQ(refusalOf([&] { save(10); }).code, ErrorCode::writeFailed);
}

TEST_F(SessionFile, ACancelledSaveLeavesTheOldFile) {
  save(100);
  const std::string before = readFile(path);
  ledger = makeLedger(3000, random);
  CancelFlag cancel;
  const Refusal result = refusalOf([&] {
    writeSessionFile(path, kKey, ledger, cache, cancel,
                     [&](uint64_t done, uint64_t) { done > 2 << 20 ? cancel.set() : void(); });
  });
  EXPECT_EQ(result.code, ErrorCode::cancelled);
  EXPECT_EQ(readFile(path), before);
  EXPECT_EQ(filesInFolder().size(), 1u);
}

TEST_F(SessionFile, AKilledSaveLeavesTheOldFile) {
  save(100);
  const std::string before = readFile(path);
  ledger = makeLedger(3000, random);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    writeSessionFile(path, kKey, ledger, cache, never, [](uint64_t done, uint64_t) {
      if (done > 2 << 20) raise(SIGKILL);
    });
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  EXPECT_EQ(readFile(path), before);
  // What is left over has the ending by which it is cleaned up.
  for (const std::string& name : filesInFolder())
    EXPECT_TRUE(name == "workspace.session" || name.ends_with(".partial")) << name;
}

}  // namespace
}  // namespace longsight::test
