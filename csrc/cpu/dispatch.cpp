#include "cpu/dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastrnn::cpu {

// What engine.cpp defines for an instruction set.
#define FASTRNN_DECLARE(isa)    \
  namespace isa {               \
  extern const Engines engines; \
  }
FASTRNN_FOR_EACH_ISA(FASTRNN_DECLARE)
#undef FASTRNN_DECLARE

namespace {

struct IsaRow {
  Isa isa;
  const char* name;
  bool available;
  bool preferred;  // to those before it in the list
  const Engines* engines;
};

// In the order of Isa.
const std::vector<IsaRow>& all() {
  static const std::vector<IsaRow> isas = [] {
    std::vector<IsaRow> list;
    list.push_back({Isa::baseline, "baseline", true, true, &baseline::engines});
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    list.push_back({Isa::avx2, "avx2", avx2, true, &avx2::engines});
    list.push_back(
        {Isa::avx2_vnni, "avx2_vnni", avx2 && __builtin_cpu_supports("avxvnni"), true, &avx2_vnni::engines});
    list.push_back({Isa::avx512, "avx512", avx512, true, &avx512::engines});
    const bool avx512_vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    list.push_back({Isa::avx512_vnni, "avx512_vnni", avx512_vnni, true, &cpu::avx512_vnni::engines});
    // Intel's (measured: a Xeon of model 207) do half as many multiply-adds a second with bfloat16 as with floats.
    list.push_back({Isa::avx512_bf16, "avx512_bf16", avx512_vnni && __builtin_cpu_supports("avx512bf16"),
                    !__builtin_cpu_is("intel"), &avx512_bf16::engines});
#endif
    return list;
  }();
  return isas;
}

template <class Predicate>
std::vector<std::string> names(const Predicate& wanted) {
  std::vector<std::string> result;
  for (const IsaRow& isa : all()) {
    if (wanted(isa)) result.push_back(isa.name);
  }
  return result;
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

const IsaRow& find_available(const std::string& name, const std::string& who) {
  for (const IsaRow& isa : all()) {
    if (name == isa.name && isa.available) return isa;
  }
  throw std::runtime_error(who + ": expected an instruction set that this build and this processor have (" +
                           join(isas_available()) + "), got '" + name + "'");
}

const IsaRow& initial() {
  const char* forced = std::getenv("FASTRNN_CPU_ISA");
  if (forced != nullptr && *forced != '\0') return find_available(forced, "FASTRNN_CPU_ISA");
  const auto best = std::find_if(all().rbegin(), all().rend(),
                                 [](const IsaRow& isa) { return isa.available && isa.preferred; });
  return *best;  // the baseline, if no other
}

std::atomic<const IsaRow*>& current() {
  static std::atomic<const IsaRow*> isa{&initial()};
  return isa;
}

}  // namespace

std::vector<std::string> isas_built() {
  return names([](const IsaRow&) { return true; });
}
std::vector<std::string> isas_available() {
  return names([](const IsaRow& isa) { return isa.available; });
}
std::string isa() { return current().load()->name; }
void set_isa(const std::string& name) { current() = &find_available(name, "set_isa"); }
Isa isa_in_use() { return current().load()->isa; }
const Engines& engines(Isa isa) { return *all()[static_cast<int>(isa)].engines; }
const FunctionsOfCell& functions_of_cell(int cell, Isa isa) {
  const FunctionsOfCell* functions = row_of(cell).functions[static_cast<int>(isa)];
  if (functions == nullptr) {
    throw std::runtime_error(std::string("cell: '") + info_of(cell).name + "' was not compiled for " +
                             all()[static_cast<int>(isa)].name + ", which is in use");
  }
  return *functions;
}

}  // namespace fastrnn::cpu
