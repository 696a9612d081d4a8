#include "session/session_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <random>

#include "error.h"
#include "session/checked_stream.h"
#include "session/checksum.h"
#include "session/new_file.h"

namespace longsight {
namespace {

constexpr char kMagic[8] = {'L', 'S', 'I', 'G', 'H', 'T', 'K', 'V'};
constexpr uint32_t kVersion = 3;
// Rows that are copied out of a plane or into it at a time.
constexpr uint64_t kCopyBytes = uint64_t{4} << 20;

struct Header {
  char magic[8];
  uint32_t version;
  int32_t kvType;
  uint64_t model;
  uint64_t build;
  double ropeBaseScale;
  int32_t layers;
  int32_t kvHeads;
  int32_t headDim;
  int32_t planes;
  // Of a row in all planes together.
  uint64_t rowBytes;
  uint64_t rows;
  uint64_t ledgerBytes;
  uint64_t streamBytes;
  uint64_t seed;
  char reserved[152];
  uint64_t checksum;
};
static_assert(sizeof(Header) == 256 && offsetof(Header, checksum) == 248);

uint64_t checksumOf(const Header& header) {
  return checksum64(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, checksum)), 0);
}

class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  ~Descriptor() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

Error unreadable(const std::string& path, int reason) {
  return Error(ErrorCode::unreadableFile,
               "The saved session \"" + path + "\" cannot be read: " + std::strerror(reason) + ".",
               "Check the path and the permissions of the file.");
}

Error foreign(const std::string& path) {
  return Error(ErrorCode::notSessionFile, "\"" + path + "\" is not a saved session.",
               "Name another file; this one is left as it is.");
}

Error othersFile(const std::string& path, const std::string& what) {
  return Error(ErrorCode::otherSessionFile,
               "The saved session \"" + path + "\" does not fit: " + what + ".",
               "Ask without it, or let it be replaced.");
}

// Opens regular files only: anything else could block.
int openRegular(const std::string& path, struct stat& info) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor < 0) return -1;
  if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(descriptor);
    throw foreign(path);
  }
  return descriptor;
}

// Nothing of another kind is lost by a wrong path. An empty file may be one that was reserved.
void requireReplaceable(const std::string& path) {
  struct stat info;
  const Descriptor file(openRegular(path, info));
  if (file.get() < 0) {
    if (errno != ENOENT) throwWriteFailed(path);
    return;
  }
  if (info.st_size == 0) return;
  char magic[sizeof(kMagic)];
  if (pread(file.get(), magic, sizeof(magic), 0) != sizeof(magic) ||
      std::memcmp(magic, kMagic, sizeof(magic)) != 0)
    throw foreign(path);
}

uint64_t sumOf(std::span<const uint64_t> numbers) {
  return std::accumulate(numbers.begin(), numbers.end(), uint64_t{0});
}

// Calls body(plane, first row, rows, bytes) for all of rows [0, rows) in the order of the file.
template <typename Body>
void forRows(const CacheRows& cache, int64_t rows, const Body& body) {
  const std::vector<uint64_t> rowBytes = cache.planeRowBytes();
  for (size_t plane = 0; plane < rowBytes.size(); ++plane) {
    const auto atOnce = static_cast<int64_t>(std::max<uint64_t>(1, kCopyBytes / rowBytes[plane]));
    for (int64_t row = 0; row < rows; row += atOnce) {
      const int64_t count = std::min(atOnce, rows - row);
      body(plane, row, count, static_cast<uint64_t>(count) * rowBytes[plane]);
    }
  }
}

Header headerOf(const SessionKey& key, const CacheLedger& ledger, uint64_t ledgerBytes,
                std::span<const uint64_t> planeRowBytes) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.kvType = key.kvType;
  header.model = key.model;
  header.build = key.build;
  header.ropeBaseScale = key.ropeBaseScale;
  header.layers = key.layers;
  header.kvHeads = key.kvHeads;
  header.headDim = key.headDim;
  header.planes = static_cast<int32_t>(planeRowBytes.size());
  header.rowBytes = sumOf(planeRowBytes);
  header.rows = static_cast<uint64_t>(ledger.rows());
  header.ledgerBytes = ledgerBytes;
  header.streamBytes = ledgerBytes + header.rows * header.rowBytes;
  std::random_device random;
  header.seed = uint64_t{random()} << 32 | random();
  header.checksum = checksumOf(header);
  return header;
}

// Everything that the header alone can tell. Overflow is impossible in what is not refused.
void checkHeader(const Header& header, const std::string& path, const SessionKey& key,
                 int64_t capacityRows, std::span<const uint64_t> planeRowBytes,
                 uint64_t fileBytes) {
  if (header.version != kVersion)
    throw othersFile(path, "its format is version " + std::to_string(header.version) +
                               ", this build reads version " + std::to_string(kVersion));
  if (header.checksum != checksumOf(header))
    throwDamaged(path, "the checksum of its header is wrong");
  if (header.model != key.model) throw othersFile(path, "it was made with another model file");
  if (header.build != key.build)
    throw othersFile(path, "it was made by another build or for another kind of processor");
  if (header.kvType != key.kvType)
    throw othersFile(path, "its keys and values are stored in another type");
  if (header.ropeBaseScale != key.ropeBaseScale)
    throw othersFile(path, "it was made with a RoPE base scale of " +
                               std::to_string(header.ropeBaseScale) + ", not " +
                               std::to_string(key.ropeBaseScale));
  const uint64_t rowBytes = sumOf(planeRowBytes);
  if (header.layers != key.layers || header.kvHeads != key.kvHeads ||
      header.headDim != key.headDim || header.rowBytes != rowBytes ||
      static_cast<size_t>(header.planes) != planeRowBytes.size())
    throwDamaged(path, "the shape of its rows is not the model's");
  if (header.rows > static_cast<uint64_t>(capacityRows))
    throw othersFile(path, "it has " + std::to_string(header.rows) +
                               " tokens, but the context holds " + std::to_string(capacityRows));
  if (header.ledgerBytes > fileBytes ||
      header.streamBytes != header.ledgerBytes + header.rows * rowBytes)
    throwDamaged(path, "its lengths contradict each other");
  const uint64_t expected = sizeof(Header) + storedBytes(header.streamBytes);
  if (fileBytes != expected)
    throwDamaged(path, "it has " + std::to_string(fileBytes) + " bytes instead of " +
                           std::to_string(expected));
}

StreamOptions streamOptions(const std::string& path, const Header& header, const CancelFlag& cancel,
                            const FileProgress& onProgress) {
  const uint64_t total = header.streamBytes;
  StreamProgress report;
  if (onProgress) report = [&onProgress, total](uint64_t done) { onProgress(done, total); };
  return {path, header.seed, &cancel, report};
}

}  // namespace

uint64_t sessionFileBytes(const CacheLedger& ledger, const CacheRows& cache) {
  const Header header = headerOf({}, ledger, encodeLedger(ledger).size(), cache.planeRowBytes());
  return sizeof(Header) + storedBytes(header.streamBytes);
}

uint64_t writeSessionFile(const std::string& path, const SessionKey& key, const CacheLedger& ledger,
                          const CacheRows& cache, const CancelFlag& cancel,
                          const FileProgress& onProgress) {
  requireReplaceable(path);
  const std::vector<std::byte> encoded = encodeLedger(ledger);
  const Header header = headerOf(key, ledger, encoded.size(), cache.planeRowBytes());
  NewFile file(path);
  writeFully(file.descriptor(), &header, sizeof(header), path);
  CheckedWriter stream(file.descriptor(), streamOptions(path, header, cancel, onProgress));
  stream.write(encoded.data(), encoded.size());
  std::vector<std::byte> copied;
  forRows(cache, ledger.rows(), [&](size_t plane, int64_t first, int64_t rows, uint64_t bytes) {
    copied.resize(bytes);
    cache.readRows(plane, first, rows, copied.data());
    stream.write(copied.data(), bytes);
  });
  stream.finish();
  if (cancel.isSet()) throw cancelledError();
  file.commit();
  return sizeof(Header) + storedBytes(header.streamBytes);
}

CacheLedger readSessionFile(const std::string& path, const SessionKey& key,
                            const LedgerLimits& limits, int64_t capacityRows, CacheRows& cache,
                            const std::function<void()>& begin, const CancelFlag& cancel,
                            const FileProgress& onProgress) {
  struct stat info;
  const Descriptor file(openRegular(path, info));
  if (file.get() < 0) throw unreadable(path, errno);
  const auto fileBytes = static_cast<uint64_t>(info.st_size);
  Header header{};
  const size_t headerBytes = std::min<uint64_t>(fileBytes, sizeof(header));
  readFully(file.get(), &header, headerBytes, path);
  if (headerBytes < sizeof(kMagic) || std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0)
    throw foreign(path);
  if (headerBytes < sizeof(header)) throwDamaged(path, "it ends within its header");
  checkHeader(header, path, key, capacityRows, cache.planeRowBytes(), fileBytes);

  CheckedReader stream(file.get(), header.streamBytes,
                       streamOptions(path, header, cancel, onProgress));
  std::vector<std::byte> encoded(header.ledgerBytes);
  stream.read(encoded.data(), encoded.size());
  CacheLedger ledger = decodeLedger(encoded, limits, path);
  if (static_cast<uint64_t>(ledger.rows()) != header.rows)
    throwDamaged(path, "it has another number of tokens than rows");
  begin();
  std::vector<std::byte> copied;
  forRows(cache, ledger.rows(), [&](size_t plane, int64_t first, int64_t rows, uint64_t bytes) {
    copied.resize(bytes);
    stream.read(copied.data(), bytes);
    cache.writeRows(plane, first, rows, copied.data());
  });
  cache.filled(ledger.rows());
  return ledger;
}

}  // namespace longsight
