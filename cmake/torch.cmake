# libtorch from the Python wheel, as imported targets made from the wheel's own path.
# `find_package(Torch)` is not used: it is fatal where no CUDA toolkit is installed.
#   torch::headers  include paths alone (stable-ABI kernel packages)
#   torch::cpu      libtorch_cpu and libc10; CUDA is opened at run time when a CUDA device is asked for
if(NOT GRAFT_TORCH_DIR)
  execute_process(
    COMMAND ${GRAFT_TORCH_PYTHON} -c
      "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE GRAFT_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE _torch_missing)
  if(_torch_missing)
    message(FATAL_ERROR "[cmake.torch] torch wheel: expected in `${GRAFT_TORCH_PYTHON}`, got none\n"
      "hint: run `make setup`, or name another one with -DGRAFT_TORCH_PYTHON=… or -DGRAFT_TORCH_DIR=…")
  endif()
  set(GRAFT_TORCH_DIR ${GRAFT_TORCH_DIR} CACHE PATH "Folder of the torch package (holds lib/ and include/)")
endif()
file(STRINGS ${GRAFT_TORCH_DIR}/version.py _torch_version REGEX "^__version__")
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+[^']*" GRAFT_TORCH_VERSION "${_torch_version}")
message(STATUS "torch ${GRAFT_TORCH_VERSION}: ${GRAFT_TORCH_DIR}")
if(GRAFT_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "[cmake.torch] version: expected 2.11 or later, got ${GRAFT_TORCH_VERSION}")
endif()

add_library(torch::headers INTERFACE IMPORTED)
target_include_directories(torch::headers SYSTEM INTERFACE
  ${GRAFT_TORCH_DIR}/include ${GRAFT_TORCH_DIR}/include/torch/csrc/api/include)

add_library(torch::c10 SHARED IMPORTED)
set_target_properties(torch::c10 PROPERTIES IMPORTED_LOCATION ${GRAFT_TORCH_DIR}/lib/libc10.so)
add_library(torch::cpu SHARED IMPORTED)
set_target_properties(torch::cpu PROPERTIES IMPORTED_LOCATION ${GRAFT_TORCH_DIR}/lib/libtorch_cpu.so)
# The wheel's libtorch_cpu needs libcupti and libcudart, which it finds by its own RPATH.
target_link_options(torch::cpu INTERFACE -Wl,--allow-shlib-undefined -Wl,-rpath,${GRAFT_TORCH_DIR}/lib)
target_link_libraries(torch::cpu INTERFACE torch::headers torch::c10)
