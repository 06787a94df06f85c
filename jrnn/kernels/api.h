// The interface between the kernels and their callers: plain structs and a table of functions.
//
// It is included by code for all instruction sets, so it must not define templates, methods, or
// functions with external linkage.

#ifndef JRNN_KERNELS_API_H_
#define JRNN_KERNELS_API_H_

#include <stdint.h>

// The cells; jrnn/engines/kernel_call.py uses the same numbers.
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

// A reusable barrier for threads.
struct JrnnBarrier {
  alignas(64) int32_t arrived;
  alignas(64) int32_t phase;
};

// The arguments of one kernel run, forward or backward. Arrays are row-major. T is the number of
// steps, B the batch size, I and H the input and hidden sizes, G the number of gates, and S the
// number of residual arrays of each step. Absent arrays are null. `stride` is the batch size of
// arrays with the axes [T, B]; it is larger than B if a run only processes a part of the batch.
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
  const float* h0;         // [B, H]: the initial carry
  const float* c0;
  const float* h_reset;    // [B, H]: the reset carry, which replaces the carry at a reset
  const float* c_reset;
  float* ys;      // [T, B, H]
  float* h_last;  // [B, H]
  float* c_last;
  float* saved;  // residuals [T, B, S, H], or null without gradients

  // Backward pass only: the cotangents of the arrays above, in the same shapes.
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
  float* d_h_reset;
  float* d_c_reset;

  // Set by `plan`: the batch is divided into `parts`, and the hidden units of each part into
  // `slices`. With more than one slice, each slice has its own worker. Otherwise a worker may run
  // several parts.
  int32_t parts, slices, workers;

  float* scratch;         // memory of the size that `plan` returns
  JrnnBarrier* barriers;  // one for all workers, then one for each part
};

// Waiting threads call jrnn_relax() JRNN_SPINS times, then sleep in short intervals.
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
  int32_t (*gates)(int32_t cell);  // number of gates of a JrnnCell; 0 for an unknown cell
  int32_t (*saved)(int32_t cell);  // number of residual arrays of each step
  // Sets `parts`, `slices` and `workers`. `threads` is the maximum number of threads, and
  // `available` the number of threads that can run now. `parts` does not depend on `available`, so
  // that the order of sums over the batch is deterministic. Returns the size of the scratch memory
  // in floats.
  int64_t (*plan)(JrnnRun* run, int32_t threads, int32_t available, int32_t backward);
  // Called by run->workers threads concurrently, with worker = 0 .. run->workers - 1.
  void (*forward)(const JrnnRun* run, int32_t worker);
  void (*backward)(const JrnnRun* run, int32_t worker);
};

// One for each instruction set that CMakeLists.txt compiles; v3 and v4 are x86-64-v3 and x86-64-v4.
// jrnn_kernels() in dispatch.h selects one.
const JrnnKernels* jrnn_kernels_base();
const JrnnKernels* jrnn_kernels_v3();
const JrnnKernels* jrnn_kernels_v4();
}

#endif  // JRNN_KERNELS_API_H_
