// pathnet._C: the CPU operators. It needs libc10 and libtorch_cpu alone, so it also loads on a CPU
// build of torch.
#include "../extension.h"

#include <stdexcept>

#include "isa.h"

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  std::string isa, why;
  try {
    isa = pathnet::to_string(pathnet::full_isa()), why = pathnet::why_isa();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ImportError, error.what());
    return nullptr;
  }
  PyObject* module = pathnet::create_module(&definition);
  if (module == nullptr) return nullptr;
  if (PyModule_AddStringConstant(module, "instructions", isa.c_str()) < 0 ||
      PyModule_AddStringConstant(module, "why_instructions", why.c_str()) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
