#include "cpu/dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cells/registry.h"

namespace fastrnn::cpu {

// What engine.cpp and cells.cpp define for an instruction set.
#define FASTRNN_DECLARE(isa)                     \
  namespace isa {                                \
  extern const Engines engines;                  \
  extern const FunctionsOfCell cell_functions[]; \
  }
FASTRNN_DECLARE(baseline)
#if defined(__x86_64__)
FASTRNN_DECLARE(avx2)
FASTRNN_DECLARE(avx512)
FASTRNN_DECLARE(avx512_bf16)
#endif
#undef FASTRNN_DECLARE

namespace {

struct Isa {
  const char* name;
  bool available;
  bool preferred;  // to those before it in the list
  const Engines* engines;
  const FunctionsOfCell* cells;
};

const std::vector<Isa>& all() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> list;
    list.push_back({"baseline", true, true, &baseline::engines, baseline::cell_functions});
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    list.push_back({"avx2", avx2, true, &avx2::engines, avx2::cell_functions});
    list.push_back({"avx512", avx512, true, &avx512::engines, avx512::cell_functions});
    // Intel's (measured: a Xeon of model 207) do half as many multiply-adds a second with bfloat16 as with floats.
    list.push_back({"avx512_bf16", avx512 && __builtin_cpu_supports("avx512bf16"), !__builtin_cpu_is("intel"),
                    &avx512_bf16::engines, avx512_bf16::cell_functions});
#endif
    return list;
  }();
  return isas;
}

template <class Predicate>
std::vector<std::string> names(const Predicate& wanted) {
  std::vector<std::string> result;
  for (const Isa& isa : all()) {
    if (wanted(isa)) result.push_back(isa.name);
  }
  return result;
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

const Isa& find_available(const std::string& name, const std::string& who) {
  for (const Isa& isa : all()) {
    if (name == isa.name && isa.available) return isa;
  }
  throw std::runtime_error(who + ": expected an instruction set that this build and this processor have (" +
                           join(isas_available()) + "), got '" + name + "'");
}

const Isa& initial() {
  const char* forced = std::getenv("FASTRNN_CPU_ISA");
  if (forced != nullptr && *forced != '\0') return find_available(forced, "FASTRNN_CPU_ISA");
  const auto best = std::find_if(all().rbegin(), all().rend(),
                                 [](const Isa& isa) { return isa.available && isa.preferred; });
  return *best;  // the baseline, if no other
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> isa{&initial()};
  return isa;
}

}  // namespace

std::vector<std::string> isas_built() {
  return names([](const Isa&) { return true; });
}
std::vector<std::string> isas_available() {
  return names([](const Isa& isa) { return isa.available; });
}
std::string isa() { return current().load()->name; }
void set_isa(const std::string& name) { current() = &find_available(name, "set_isa"); }
const cells::CellInfo& info_of(int cell) { return *cells::kCells[cell]; }
const Engines& engines() { return *current().load()->engines; }
const FunctionsOfCell& functions_of_cell(int cell) { return current().load()->cells[cell]; }

}  // namespace fastrnn::cpu
