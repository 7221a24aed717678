#pragma once
// What every extension module of pathnet tells Python about itself.
#include <Python.h>
#include <torch/headeronly/version.h>

namespace pathnet {

// Raised together with SCHEMA_VERSION in pathnet/ops/schemas.py whenever a schema changes: an
// extension of another version is not used.
constexpr long kSchemaVersion = 12;

#define PATHNET_STRING_(x) #x
#define PATHNET_STRING(x) PATHNET_STRING_(x)
constexpr const char* kBuiltWithTorch = PATHNET_STRING(TORCH_VERSION_MAJOR) "." PATHNET_STRING(
    TORCH_VERSION_MINOR) "." PATHNET_STRING(TORCH_VERSION_PATCH);

#ifdef __SANITIZE_ADDRESS__
constexpr const char* kCompiler = __VERSION__ " with sanitizers";
#else
constexpr const char* kCompiler = __VERSION__;
#endif

// The operators register themselves when the library is loaded; the module carries only facts about
// the build.
inline PyObject* create_module(PyModuleDef* definition) {
  PyObject* module = PyModule_Create(definition);
  if (module == nullptr) return nullptr;
  const bool failed = PyModule_AddIntConstant(module, "schema_version", kSchemaVersion) < 0 ||
                      PyModule_AddStringConstant(module, "torch", kBuiltWithTorch) < 0 ||
                      PyModule_AddStringConstant(module, "compiler", kCompiler) < 0;
  if (failed) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}

}  // namespace pathnet
