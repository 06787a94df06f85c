// Selects the kernels of an instruction set that this CPU supports.

#ifndef JRNN_KERNELS_DISPATCH_H_
#define JRNN_KERNELS_DISPATCH_H_

#include "api.h"

struct JrnnIsa {
  const char* name;                    // base, v3, v4
  const JrnnKernels* (*kernels)();
  bool (*supported)();
};

// The instruction sets that were compiled and that this CPU supports, from the oldest (base) to the
// newest, as a null-terminated list.
const JrnnIsa* const* jrnn_available_isas();

// The newest available instruction set, or the newest one up to that of the environment variable
// JRNN_ISA. It is selected at the first call, when module.cc loads the Python module. Null if
// JRNN_ISA is not base, v3 or v4; importing the module then raises ValueError.
const JrnnIsa* jrnn_isa();

// The kernels of jrnn_isa().
const JrnnKernels* jrnn_kernels();

#endif  // JRNN_KERNELS_DISPATCH_H_
