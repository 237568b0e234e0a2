// Libraries that a test compiles itself, and packages around them.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "graft/kernel/resolver.h"

namespace graft::kernel {

constexpr char kTestVariant[] = "torch-stable-abi211-cpu-x86_64-linux";

// Compiles a source text into a shared library with the system's compiler.
inline void compile_library(const std::string& source, const std::filesystem::path& library,
                            const std::string& options = "") {
  std::filesystem::create_directories(library.parent_path());
  const std::filesystem::path text = library.string() + ".cpp";
  std::ofstream(text) << source;
  const std::string command = "c++ -shared -fPIC -O1 -o '" + library.string() + "' '" +
                              text.string() + "' " + options + " 2>&1";
  if (std::system(command.c_str()) != 0) {
    throw std::runtime_error("cannot compile: " + command);
  }
  std::filesystem::remove(text);
}

// A package of one CPU variant with this library and no layers.
inline Resolution make_package(const std::filesystem::path& root, const std::string& id,
                               const std::string& source, const std::string& options = "") {
  const std::filesystem::path folder = root / id / "build" / kTestVariant;
  compile_library("extern \"C\" void* PyInit_" + id + "() { return nullptr; }\n" + source,
                  folder / (id + ".abi3.so"), options);
  std::ofstream(folder / "metadata.json")
      << R"({"name": "demo", "id": ")" << id
      << R"(", "version": 1, "license": "mit", "python-depends": [], "backend": {"type": "cpu"}})";
  return resolve({{(root / id).string(), "", "Any"}, this_system("cpu", 0)});
}

}  // namespace graft::kernel
