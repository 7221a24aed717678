// pathnet._cuda: the CUDA operators, apart from pathnet._C so that no CUDA problem takes the CPU
// operators away.
#include "../extension.h"

#include <cuda_runtime.h>

PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr};
  PyObject* module = pathnet::create_module(&definition);
  if (module != nullptr && PyModule_AddIntConstant(module, "cuda", CUDART_VERSION) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
