// How the threads of one call share the work: the batch in parts, the units of a part in slices.
#pragma once

#include <string.h>
#include <time.h>

#include "api.h"
#include "simd.h"

namespace {

// Every member returns when all have come; what each wrote before is seen by all after.
inline void meet(JrnnBarrier* barrier, int32_t size) {
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
      // Two on one core would yield to each other for long; who sleeps wakes on one that is free.
      const timespec moment = {0, 1000};
      nanosleep(&moment, nullptr);
    }
  }
}

struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

JRNN_INLINE Range share(int64_t count, int64_t index, int64_t of) {
  return {count * index / of, count * (index + 1) / of};
}

// One share of the work: a slice of the units of a part of the batch. Parts that are no slices need
// not run at the same time, so that one worker may do several, phase by phase.
struct Member {
  const JrnnRun& run;
  int32_t number, part, slice;
  Range rows;

  Member(const JrnnRun& r, int32_t m)
      : run(r), number(m), part(m / r.slices), slice(m % r.slices),
        rows(share(r.B, m / r.slices, r.parts)) {}

  int32_t size() const { return run.parts * run.slices; }
  void meet_part() const { meet(run.barriers + 1 + part, run.slices); }
};

// Hands out aligned pieces of the scratch memory; with a null base it only counts.
struct Arena {
  float* base;
  int64_t used = 0;
  explicit Arena(float* b) : base(b) {}

  float* floats(int64_t count) {
    float* piece = base ? base + used : nullptr;
    used += (count + 31) / 16 * 16;  // a line of room, so that no two pieces share one
    return piece;
  }
  template <class P>
  P* pointers(int64_t count) {
    return (P*)floats(count * ((int64_t)sizeof(P) / 4));
  }
};

}  // namespace
