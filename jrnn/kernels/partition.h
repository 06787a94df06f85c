// Divides the work of one kernel run among threads: the batch into parts, and the hidden units of a
// part into slices. Also barriers, and the allocation of scratch memory.
#pragma once

#include <string.h>
#include <time.h>

#include "api.h"
#include "simd.h"

namespace {

// Returns when `size` threads have called it. Each then sees what the others wrote before.
inline void wait_at_barrier(JrnnBarrier* barrier, int32_t size) {
  if (size == 1) return;
  const int32_t phase = __atomic_load_n(&barrier->phase, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == size) {
    __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier->phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&barrier->phase, __ATOMIC_ACQUIRE) == phase; ++spins) {
    if (spins < JRNN_SPINS) {
      jrnn_relax();
    } else {
      // Sleeps, since sched_yield may alternate between two threads on one core for a long time.
      // A thread that wakes up is usually scheduled on a free core.
      const timespec microsecond = {0, 1000};
      nanosleep(&microsecond, nullptr);
    }
  }
}

struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// The range `index` of `num` nearly equal ranges that cover 0 .. count.
JRNN_INLINE Range split_range(int64_t count, int64_t index, int64_t num) {
  return {count * index / num, count * (index + 1) / num};
}

// A slice of the units of a part of the batch. With one slice per part, work items do not wait for
// each other within a phase of a pass (see `work` in kernels.cc), so one worker may run several.
struct WorkItem {
  const JrnnRun& run;
  int32_t index, part, slice;
  Range rows;

  WorkItem(const JrnnRun& r, int32_t m)
      : run(r), index(m), part(m / r.slices), slice(m % r.slices),
        rows(split_range(r.B, m / r.slices, r.parts)) {}

  int32_t count() const { return run.parts * run.slices; }
  void wait_for_part() const { wait_at_barrier(run.barriers + 1 + part, run.slices); }
};

// Allocates aligned blocks of the scratch memory; with a null base it only computes the size.
struct Arena {
  float* base;
  int64_t used = 0;
  explicit Arena(float* b) : base(b) {}

  float* floats(int64_t count) {
    float* block = base ? base + used : nullptr;
    used += (count + 31) / 16 * 16;  // padded, so that no two blocks share a cache line
    return block;
  }
  template <class P>
  P* pointers(int64_t count) {
    return (P*)floats(count * ((int64_t)sizeof(P) / 4));
  }
};

}  // namespace
