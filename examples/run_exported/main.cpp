// Runs a model that PyTorch compiled ahead of time and whose graph calls ops of our packages: no Python here.
//
//   run_exported model.pt2 rows columns output.bin package.abi3.so...
//
// The input is float32 [rows, columns] with the values 0, 0.01, 0.02 and so on; the output's bytes go to the file.

#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ops/arange.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

namespace {

// Lazily bound: the one Python symbol that a package names belongs to its module entry, which nobody calls here.
void load_package(const char* path) {
  if (!dlopen(path, RTLD_LAZY | RTLD_LOCAL)) {
    throw std::runtime_error(std::string("[run_exported] package: expected a library, got ") +
                             dlerror());
  }
}

void run(char** arguments) {
  torch::inductor::AOTIModelPackageLoader model(arguments[0]);
  const long rows = std::stol(arguments[1]);
  const long columns = std::stol(arguments[2]);
  const at::Tensor input =
      at::arange(rows * columns, at::kFloat).mul(0.01).reshape({rows, columns});
  const at::Tensor output = model.run({input}).at(0).contiguous();
  std::ofstream file(arguments[3], std::ios::binary);
  file.write(static_cast<const char*>(output.const_data_ptr()),
             static_cast<std::streamsize>(output.nbytes()));
  if (!file) {
    throw std::runtime_error(std::string("[run_exported] output: expected to write ") +
                             arguments[3]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::cerr << "usage: run_exported model.pt2 rows columns output.bin package.abi3.so...\n";
    return EXIT_FAILURE;
  }
  try {
    for (int i = 5; i < argc; ++i) {
      load_package(argv[i]);
    }
    run(argv + 1);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
