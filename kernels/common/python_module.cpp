// What lets Python import the library as a module, written without Python's headers: `PyInit_<id>`
// and one undefined CPython symbol. A host without Python binds lazily and never resolves it.

#include <cstddef>

extern "C" {

// PyModuleDef of the stable ABI since Python 3.2.
struct GraftPyModuleDef {
  std::ptrdiff_t refcount;
  void* type;
  void* init;
  std::ptrdiff_t index;
  void* copy;
  const char* name;
  const char* doc;
  std::ptrdiff_t size;
  void* methods;
  void* slots;
  void* traverse;
  void* clear;
  void* free;
};

void* PyModule_Create2(GraftPyModuleDef* definition, int abi_version);
}

#define GRAFT_CONCATENATE_(a, b) a##b
#define GRAFT_CONCATENATE(a, b) GRAFT_CONCATENATE_(a, b)
#define GRAFT_STRINGIZE_(a) #a
#define GRAFT_STRINGIZE(a) GRAFT_STRINGIZE_(a)

extern "C" __attribute__((visibility("default"))) void* GRAFT_CONCATENATE(PyInit_,
                                                                          TORCH_EXTENSION_NAME)() {
  constexpr int kStableAbiVersion = 3;
  static GraftPyModuleDef definition = {
      1,       nullptr, nullptr, 0,       nullptr, GRAFT_STRINGIZE(TORCH_EXTENSION_NAME),
      nullptr, 0,       nullptr, nullptr, nullptr, nullptr,
      nullptr};
  return PyModule_Create2(&definition, kStableAbiVersion);
}
