// The XLA FFI handlers, which ffi.cc defines and module.cc exports to Python.

#ifndef JRNN_KERNELS_HANDLERS_H_
#define JRNN_KERNELS_HANDLERS_H_

struct JrnnHandler {
  const char* name;  // for jax.ffi.register_ffi_target and jax.ffi.ffi_call
  void* function;    // XLA_FFI_Handler*
};

extern const JrnnHandler jrnn_handlers[];  // terminated by {nullptr, nullptr}

#endif  // JRNN_KERNELS_HANDLERS_H_
