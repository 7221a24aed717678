// pathnet._C: the CPU operators. It needs libc10 and libtorch_cpu alone, so it also loads on a CPU
// build of torch.
#include "../extension.h"

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return pathnet::create_module(&definition);
}
