#include "session/build_identity.h"

#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/ggml_runtime.h"
#include "error.h"
#include "session/checksum.h"

namespace longsight {
namespace {

struct Search {
  uintptr_t address;
  bool withGgml;
  std::vector<std::string> ids;
  std::string without;
};

std::string buildIdIn(const char* notes, size_t bytes) {
  auto padded = [](size_t length) { return (length + 3) & ~size_t{3}; };
  while (bytes >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) note;
    std::memcpy(&note, notes, sizeof(note));
    const size_t whole = sizeof(note) + padded(note.n_namesz) + padded(note.n_descsz);
    if (whole > bytes) break;
    const char* name = notes + sizeof(note);
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(name, "GNU", 4) == 0)
      return std::string(name + padded(note.n_namesz), note.n_descsz);
    notes += whole;
    bytes -= whole;
  }
  return "";
}

int visit(dl_phdr_info* object, size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  const std::string path = object->dlpi_name ? object->dlpi_name : "";
  bool wanted = search.withGgml && path.substr(path.rfind('/') + 1).starts_with("libggml");
  std::string id;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = object->dlpi_phdr[i];
    const uintptr_t begin = object->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && search.address - begin < header.p_memsz) wanted = true;
    if (header.p_type == PT_NOTE && id.empty())
      id = buildIdIn(reinterpret_cast<const char*>(begin), header.p_memsz);
  }
  if (!wanted) return 0;
  if (id.empty()) search.without = path.empty() ? "this program" : path;
  search.ids.push_back(id);
  return 0;
}

uint64_t identityOf(Search search) {
  dl_iterate_phdr(visit, &search);
  if (!search.without.empty())
    throw Error(ErrorCode::internal, "There is no build id in " + search.without + ".",
                "Link it with --build-id.");
  std::sort(search.ids.begin(), search.ids.end());
  std::string all;
  for (const std::string& id : search.ids) all += id;
  return checksum64(std::as_bytes(std::span(all)), search.ids.size());
}

}  // namespace

uint64_t buildIdentity() {
  // The library for this processor is loaded by then.
  cpuDevice();
  return identityOf({reinterpret_cast<uintptr_t>(&buildIdentity), true, {}, ""});
}

uint64_t binaryIdentity(uintptr_t address) { return identityOf({address, false, {}, ""}); }

}  // namespace longsight
