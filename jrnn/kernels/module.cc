// The Python module jrnn._kernels. Its functions are documented in jrnn/_kernels.pyi.

#include <Python.h>
#include <stdlib.h>

#include "dispatch.h"
#include "handlers.h"

namespace {

PyObject* registrations(PyObject*, PyObject*) {
  PyObject* handlers = PyDict_New();
  if (!handlers) return nullptr;
  for (const JrnnHandler* handler = jrnn_handlers; handler->name; ++handler) {
    // jax.ffi.register_ffi_target requires this name.
    PyObject* capsule = PyCapsule_New(handler->function, "xla._CUSTOM_CALL_TARGET", nullptr);
    if (!capsule || PyDict_SetItemString(handlers, handler->name, capsule) < 0) {
      Py_XDECREF(capsule);
      Py_DECREF(handlers);
      return nullptr;
    }
    Py_DECREF(capsule);
  }
  return handlers;
}

PyObject* isa(PyObject*, PyObject*) { return PyUnicode_FromString(jrnn_isa()->name); }

PyObject* available_isas(PyObject*, PyObject*) {
  Py_ssize_t size = 0;
  while (jrnn_available_isas()[size]) ++size;
  PyObject* names = PyTuple_New(size);
  if (!names) return nullptr;
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* name = PyUnicode_FromString(jrnn_available_isas()[i]->name);
    if (!name || PyTuple_SetItem(names, i, name) < 0) {
      Py_DECREF(names);
      return nullptr;
    }
  }
  return names;
}

PyMethodDef kMethods[] = {
    {"registrations", registrations, METH_NOARGS, nullptr},
    {"isa", isa, METH_NOARGS, nullptr},
    {"available_isas", available_isas, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

int load(PyObject*) {
  if (jrnn_isa()) return 0;
  PyErr_Format(PyExc_ValueError,
               "jrnn: the environment variable JRNN_ISA must be base, v3 or v4, got '%s'",
               getenv("JRNN_ISA"));
  return -1;
}

PyModuleDef_Slot kSlots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(load)},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr},
};

PyModuleDef kModule = {PyModuleDef_HEAD_INIT, "jrnn._kernels", "C++ kernels for CPUs.", 0,
                       kMethods, kSlots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() { return PyModuleDef_Init(&kModule); }
