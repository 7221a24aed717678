// pathnet._C: the CPU operators. It needs libc10 and libtorch_cpu alone, so it also loads on a CPU
// build of torch.
#include "../extension.h"

#include "conv.h"

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  PyObject* module = pathnet::create_module(&definition);
  if (module == nullptr) return nullptr;
  if (PyModule_AddStringConstant(module, "instructions", pathnet::kernels().instructions) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
