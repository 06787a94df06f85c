// What the kernels and their callers share: plain data and a table of functions.
//
// It is read by code for the oldest machine and by code for the newest, so it holds no templates, no
// methods, and no functions that the linker could see.

#ifndef JRNN_KERNELS_API_H_
#define JRNN_KERNELS_API_H_

#include <stdint.h>

// The cells, as jrnn/engines/native.py numbers them.
enum JrnnCell : int32_t {
  kLstm,
  kLstmPeepholes,
  kLstmCoupled,
  kLstmPeepholesCoupled,
  kGru,
  kElmanTanh,
  kElmanRelu,
  kElmanSigmoid,
};

// Meets all threads of a team again and again.
struct JrnnBarrier {
  alignas(64) int32_t arrived;
  alignas(64) int32_t phase;
};

// One call, forward or backward. Arrays are row-major; G gates, S saved arrays for each step.
// A pointer is null where an array is absent. `stride` is the number of sequences that lie beside
// each other in the arrays with axes T and B, of which the B here are a part.
struct JrnnRun {
  int32_t cell;
  int32_t reverse;
  int64_t T, B, I, H, stride;
  const int32_t* lengths;  // [B]
  const uint8_t* resets;   // [T, B]
  const float* xs;         // [T, B, I]
  const float* w_ih;       // [I, G·H]
  const float* w_hh;       // [H, G·H]
  const float* b;          // [G·H]
  const float* extra[3];   // [H]: p_i, p_f, p_o, or b_hn
  const float* h0;         // [B, H], as are c0 and, with resets, the initial carry
  const float* c0;
  const float* h_initial;
  const float* c_initial;
  float* ys;      // [T, B, H]
  float* h_last;  // [B, H]
  float* c_last;
  float* saved;  // [T, B, S, H], or null if no gradient is wanted

  const float* d_ys;
  const float* d_h_last;
  const float* d_c_last;
  float* d_xs;
  float* d_w_ih;
  float* d_w_hh;
  float* d_b;
  float* d_extra[3];
  float* d_h0;
  float* d_c0;
  float* d_h_initial;
  float* d_c_initial;

  // Set by `plan`: the batch is cut into `parts`, the units of each into `slices`. With more than one
  // slice each is a worker's of its own; else a worker may have several parts.
  int32_t parts, slices, workers;
  float* scratch;
  JrnnBarrier* barriers;  // one for all, then one for each part
};

// What a thread does while it waits, and how often before it sleeps for moments.
#define JRNN_SPINS 10000
static inline void jrnn_relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

extern "C" {

struct JrnnKernels {
  int32_t (*gates)(int32_t cell);
  int32_t (*saved)(int32_t cell);
  // Chooses parts for `threads` threads, and slices and workers for the `seats` of them that came, so
  // that the order of all sums is the same whoever came; returns the floats of scratch it needs.
  int64_t (*plan)(JrnnRun* run, int32_t threads, int32_t seats, int32_t backward);
  // To be called by run->workers threads at once, each with its own number.
  void (*forward)(const JrnnRun* run, int32_t worker);
  void (*backward)(const JrnnRun* run, int32_t worker);
};

// One for each instruction set that CMakeLists.txt compiles; choose by jrnn_kernels(), dispatch.h.
const JrnnKernels* jrnn_kernels_base();
const JrnnKernels* jrnn_kernels_v3();
const JrnnKernels* jrnn_kernels_v4();
}

#endif  // JRNN_KERNELS_API_H_
