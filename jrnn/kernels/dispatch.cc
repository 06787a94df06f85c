#include "dispatch.h"

#include <stdlib.h>
#include <string.h>

#if defined(JRNN_HAS_v3) || defined(JRNN_HAS_v4)
#include <cpuid.h>
#endif

namespace {

bool always() { return true; }

#if defined(JRNN_HAS_v3) || defined(JRNN_HAS_v4)

// __builtin_cpu_supports of older versions of Clang does not accept these three features.
bool has_f16c_movbe_lzcnt() {
  unsigned int a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  const bool f16c = (c >> 29) & 1, movbe = (c >> 22) & 1;
  if (!__get_cpuid(0x80000001, &a, &b, &c, &d)) return false;
  const bool lzcnt = (c >> 5) & 1;
  return f16c && movbe && lzcnt;
}

// All features of -march=x86-64-v3. The builtins also check the support of the operating system.
bool has_v3() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("sse4.2") &&
         __builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("fma") && has_f16c_movbe_lzcnt();
}

#endif

#if defined(JRNN_HAS_v4)

bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

#endif

// From the oldest to the newest; each includes the features of those before it.
const JrnnIsa kBuilt[] = {
    {"base", jrnn_kernels_base, always},
#if defined(JRNN_HAS_v3)
    {"v3", jrnn_kernels_v3, has_v3},
#endif
#if defined(JRNN_HAS_v4)
    {"v4", jrnn_kernels_v4, has_v4},
#endif
};
constexpr int kNumBuilt = sizeof(kBuilt) / sizeof(kBuilt[0]);

const char* const kNames[] = {"base", "v3", "v4"};

int rank(const char* name) {
  for (int i = 0; i < 3; ++i) {
    if (strcmp(name, kNames[i]) == 0) return i;
  }
  return -1;
}

const JrnnIsa* select_isa() {
  const char* requested = getenv("JRNN_ISA");
  const int limit = requested && *requested ? rank(requested) : 2;
  if (limit < 0) return nullptr;
  const JrnnIsa* best = &kBuilt[0];
  for (const JrnnIsa* const* isa = jrnn_available_isas(); *isa; ++isa) {
    if (rank((*isa)->name) <= limit) best = *isa;
  }
  return best;
}

}  // namespace

const JrnnIsa* const* jrnn_available_isas() {
  static const JrnnIsa* list[kNumBuilt + 1] = {};
  static const bool filled = [] {
    int n = 0;
    for (const JrnnIsa& isa : kBuilt) {
      if (isa.supported()) list[n++] = &isa;
    }
    return true;
  }();
  (void)filled;
  return list;
}

const JrnnIsa* jrnn_isa() {
  static const JrnnIsa* const selected = select_isa();
  return selected;
}

const JrnnKernels* jrnn_kernels() {
  static const JrnnKernels* const selected = jrnn_isa()->kernels();
  return selected;
}
