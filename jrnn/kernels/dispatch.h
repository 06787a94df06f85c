// Which instruction set this machine runs.

#ifndef JRNN_KERNELS_DISPATCH_H_
#define JRNN_KERNELS_DISPATCH_H_

#include "api.h"

struct JrnnIsa {
  const char* name;                    // base, v3, v4
  const JrnnKernels* (*kernels)();
  bool (*supported)();
};

// What was compiled and runs here: a null-terminated list, the oldest, base, first.
const JrnnIsa* const* jrnn_available_isas();

// The best that is available, or what the environment variable JRNN_ISA names, or the best below
// that. Chosen at the first call, which module.cc makes when the module is loaded. Null when
// JRNN_ISA is none of base, v3, v4; then the module is not loaded.
const JrnnIsa* jrnn_isa();

// The kernels of jrnn_isa().
const JrnnKernels* jrnn_kernels();

#endif  // JRNN_KERNELS_DISPATCH_H_
