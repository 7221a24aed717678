// pathnet._cuda: the CUDA operators, apart from pathnet._C so that no CUDA problem takes the CPU
// operators away. Compiled by nvcc, which knows the list of architectures.
#include "../extension.h"

#define PATHNET_LIST_(...) #__VA_ARGS__
#define PATHNET_LIST(...) PATHNET_LIST_(__VA_ARGS__)

PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr};
  PyObject* module = pathnet::create_module(&definition);
  if (module == nullptr) return nullptr;
  const char* cuda = PATHNET_STRING(__CUDACC_VER_MAJOR__) "." PATHNET_STRING(__CUDACC_VER_MINOR__);
  const char* architectures = PATHNET_LIST(__CUDA_ARCH_LIST__);  // "800,900" for 8.0 and 9.0
  if (PyModule_AddStringConstant(module, "cuda", cuda) < 0 ||
      PyModule_AddStringConstant(module, "architectures", architectures) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
