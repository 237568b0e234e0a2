# graft_add_kernel_package(<name> [VERSION <n>])
#
# Builds the folder kernels/<name>/ into the Hub's own layout, below the embedded hub:
#   <build>/share/graft/hub/graft-kernels/<name>/build/<variant>/
#     metadata.json  layers.json  __init__.py  _ops.py  layers.py  _<name>_<backend>_<uid>.abi3.so
# Sources are found by suffix:
#   *_test.cpp   the package's tests        -> program kernels_<name>_test
#   *_bench.cpp  its benchmarks             -> program kernels_<name>_bench
#   *_simd.cpp   compiled once per instruction set (plain, avx2, avx512), chosen at run time
#   *.cu         the CUDA variant alone
#   *.cpp        both variants
#   package/*    copied into the variant as they are
# The CPU variant is always built, the CUDA variant where nvcc is found (GRAFT_CUDA=AUTO|ON|OFF). The CUDA
# variant carries the CPU implementations too: Python's client chooses by the torch build.
set(GRAFT_HUB_DIR ${CMAKE_BINARY_DIR}/share/graft/hub)
set(GRAFT_KERNEL_UID "" CACHE STRING
  "Pins the unique part of kernel ids while developing (default: a hash of the package's sources)")
set(_kernels_dir ${PROJECT_SOURCE_DIR}/kernels)
set(_metadata_tool ${PROJECT_SOURCE_DIR}/tools/make_kernel_metadata.py)
find_program(GRAFT_PACKAGE_PYTHON NAMES python3 REQUIRED)  # writes metadata.json at build time

# nvcc: named, from a toolkit, or from PyPI (nvidia-cuda-nvcc beside the torch wheel).
if(NOT GRAFT_CUDA STREQUAL "OFF")
  get_filename_component(_site_packages ${GRAFT_TORCH_DIR} DIRECTORY)
  find_program(GRAFT_NVCC nvcc
    HINTS ENV CUDACXX ENV CUDA_HOME ${_site_packages}/nvidia/cu13/bin /usr/local/cuda/bin
    PATH_SUFFIXES bin)
  find_library(GRAFT_CUDART NAMES libcudart.so.13
    HINTS ${_site_packages}/nvidia/cu13/lib /usr/local/cuda/lib64 NO_CACHE)
endif()
set(GRAFT_CUDA_KERNELS OFF)
if(GRAFT_NVCC AND GRAFT_CUDART AND NOT GRAFT_CUDA STREQUAL "OFF")
  execute_process(COMMAND ${GRAFT_NVCC} --version OUTPUT_VARIABLE _nvcc_version)
  string(REGEX MATCH "release ([0-9]+)\\.([0-9]+)" _ "${_nvcc_version}")
  if(CMAKE_MATCH_1 EQUAL 13)
    set(GRAFT_CUDA_KERNELS ON)
    get_filename_component(_nvcc_real ${GRAFT_NVCC} REALPATH)
    get_filename_component(_nvcc_bin ${_nvcc_real} DIRECTORY)
    get_filename_component(GRAFT_CUDA_ROOT ${_nvcc_bin} DIRECTORY)
  else()
    set(_cuda_reason "nvcc is ${CMAKE_MATCH_1}.${CMAKE_MATCH_2}, expected 13.x (the variant is cu130)")
  endif()
elseif(GRAFT_CUDA STREQUAL "OFF")
  set(_cuda_reason "GRAFT_CUDA=OFF")
elseif(NOT GRAFT_NVCC)
  set(_cuda_reason "no nvcc (looked in PATH, /usr/local/cuda, PyPI's nvidia-cuda-nvcc)")
else()
  set(_cuda_reason "no libcudart.so.13 (a torch wheel for CUDA 13 brings it)")
endif()
if(GRAFT_CUDA_KERNELS)
  message(STATUS "graft: CUDA kernels are built with ${GRAFT_NVCC}")
elseif(GRAFT_CUDA STREQUAL "ON")
  message(FATAL_ERROR "[cmake.kernels] GRAFT_CUDA=ON: ${_cuda_reason}")
else()
  message(STATUS "graft: CUDA kernels are NOT built: ${_cuda_reason}")
endif()

# Flags of every file in a package. Contraction is off because the numeric variants fix each rounding.
set(_package_options -O3 -g0 -fvisibility=hidden -fvisibility-inlines-hidden -fno-gnu-unique -ffp-contract=off)
set(_package_defines TORCH_TARGET_VERSION=0x020b000000000000)  # torch 2.11
# Nothing but PyInit_<id> is visible from outside.
set(_package_exports ${CMAKE_BINARY_DIR}/kernel_exports.map)
file(WRITE ${_package_exports} "{ global: PyInit_*; local: *; };\n")
set(_isa_plain "")
set(_isa_avx2 -mavx2 -mfma -mf16c)
# GCC 12 calls the undefined first operand of its own unmasked intrinsics uninitialized (bug 105593).
set(_isa_avx512 -Wno-uninitialized -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c
  -mprefer-vector-width=512)
set(_nvcc_flags -std=c++20 -O3 --expt-relaxed-constexpr --diag-suppress 20012
  -gencode arch=compute_80,code=[sm_80,compute_80] -gencode arch=compute_90a,code=sm_90a
  -Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden,-fno-gnu-unique,-ffp-contract=off,-Wall
  -Werror=all-warnings)
set(_cuda_archs "8.0+PTX,9.0a")

# The sources of one package, and a short hash of everything that its binary depends on.
function(_package_sources name)
  set(folder ${_kernels_dir}/${name})
  file(GLOB own CONFIGURE_DEPENDS ${folder}/*.cpp ${folder}/*.h ${folder}/*.cu ${folder}/*.cuh)
  file(GLOB common CONFIGURE_DEPENDS ${_kernels_dir}/common/*)
  file(GLOB package CONFIGURE_DEPENDS ${folder}/package/*)
  set(tests ${own})
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
  set(benches ${own})
  list(FILTER benches INCLUDE REGEX "_bench\\.cpp$")
  list(FILTER own EXCLUDE REGEX "_(test|bench)\\.(cpp|h)$")
  list(FILTER common EXCLUDE REGEX "/(test_|bench_)[^/]*$")
  # What a package includes of another one counts as its own.
  set(borrowed "")
  foreach(file ${own})
    file(STRINGS ${file} lines REGEX "^#include \"kernels/")
    foreach(line ${lines})
      string(REGEX REPLACE "^#include \"kernels/([^\"]+)\".*" "\\1" path ${line})
      if(NOT path MATCHES "^(common|${name})/")
        list(APPEND borrowed ${_kernels_dir}/${path})
      endif()
    endforeach()
  endforeach()
  set(hashed ${own} ${common} ${package} ${borrowed})
  list(REMOVE_DUPLICATES hashed)
  list(SORT hashed)
  set(digest "")
  foreach(file ${hashed})
    file(SHA256 ${file} file_digest)
    file(RELATIVE_PATH relative ${_kernels_dir} ${file})
    string(APPEND digest "${relative}:${file_digest}\n")
  endforeach()
  string(SHA256 uid "${digest}")
  string(SUBSTRING ${uid} 0 7 uid)
  if(GRAFT_KERNEL_UID)
    set(uid ${GRAFT_KERNEL_UID})
  else()
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${hashed})
  endif()
  list(FILTER common INCLUDE REGEX "\\.cpp$")
  set(sources ${own} ${common} PARENT_SCOPE)
  set(tests ${tests} PARENT_SCOPE)
  set(benches ${benches} PARENT_SCOPE)
  set(package_files ${package} PARENT_SCOPE)
  set(uid ${uid} PARENT_SCOPE)
endfunction()

# One object library per instruction set; both variants share them.
function(_package_simd stem)
  foreach(isa plain avx2 avx512)
    set(target kernels_${stem}_simd_${isa})
    add_library(${target} OBJECT ${ARGN})
    target_link_libraries(${target} PRIVATE graft_options)
    target_compile_options(${target} PRIVATE ${_package_options} ${_isa_${isa}} -Wno-psabi
      -Wno-maybe-uninitialized)  # GCC 12 warns inside its own AVX-512 header
    target_compile_definitions(${target} PRIVATE GRAFT_ISA=${isa})
  endforeach()
endfunction()

# nvcc is called by hand: CMake's CUDA language refuses the toolkit layout that PyPI installs.
function(_cuda_objects out defines)
  set(objects "")
  list(TRANSFORM defines PREPEND -D)
  foreach(source ${ARGN})
    get_filename_component(base ${source} NAME)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${base}.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} ${GRAFT_NVCC} -c ${source} -o ${object} -MD -MF ${object}.d
        ${_nvcc_flags} -ccbin ${CMAKE_CXX_COMPILER} ${defines} -I${PROJECT_SOURCE_DIR}
        -isystem ${GRAFT_TORCH_DIR}/include -isystem ${GRAFT_CUDA_ROOT}/include
      DEPENDS ${source} DEPFILE ${object}.d VERBATIM COMMENT "nvcc ${base}")
    list(APPEND objects ${object})
  endforeach()
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  set(${out} ${objects} PARENT_SCOPE)
endfunction()

# One variant: the library, then everything beside it and the digest over all of it.
function(_package_variant name stem backend variant version uid)
  set(id _${stem}_${backend}_${uid})
  set(target kernels_${stem}_${backend})
  set(variant_dir ${GRAFT_HUB_DIR}/graft-kernels/${name}/build/${variant})
  set(cpp_sources ${sources})
  list(FILTER cpp_sources INCLUDE REGEX "\\.cpp$")
  list(FILTER cpp_sources EXCLUDE REGEX "_simd\\.cpp$")
  add_library(${target} MODULE ${cpp_sources} ${simd_objects})
  target_link_libraries(${target} PRIVATE graft_options torch::headers)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${_package_options}>)
  target_compile_definitions(${target} PRIVATE ${_package_defines} TORCH_EXTENSION_NAME=${id})
  # As upstream: no rpath, so that libtorch must be in the process already; lazy binding, so that the one
  # CPython symbol is never resolved in a process without Python.
  set_target_properties(${target} PROPERTIES PREFIX "" OUTPUT_NAME ${id} SUFFIX ".abi3.so"
    LIBRARY_OUTPUT_DIRECTORY ${variant_dir} SKIP_BUILD_RPATH ON)
  target_link_options(${target} PRIVATE -Wl,--no-as-needed -Wl,-z,lazy
    -Wl,--version-script=${_package_exports})
  set(archs "")
  if(backend STREQUAL "cuda")
    set(cuda_sources ${sources})
    list(FILTER cuda_sources INCLUDE REGEX "\\.cu$")
    _cuda_objects(cuda_objects "${_package_defines};TORCH_EXTENSION_NAME=${id};USE_CUDA" ${cuda_sources})
    target_sources(${target} PRIVATE ${cuda_objects})
    target_link_libraries(${target} PRIVATE ${GRAFT_TORCH_DIR}/lib/libtorch.so ${GRAFT_CUDART})
    set(archs --archs ${_cuda_archs})
  else()
    # libtorch.so of a CUDA wheel drags libtorch_cuda in; the CPU variant asks for the CPU part alone.
    target_link_libraries(${target} PRIVATE ${GRAFT_TORCH_DIR}/lib/libtorch_cpu.so)
  endif()
  add_custom_command(TARGET ${target} POST_BUILD
    COMMAND ${GRAFT_PACKAGE_PYTHON} ${_metadata_tool} --variant-dir ${variant_dir} --name ${name} --id ${id}
      --version ${version} --backend ${backend} ${archs} ${package_files}
    VERBATIM COMMENT "metadata of ${name} ${variant}")
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${package_files} ${_metadata_tool})
endfunction()

# A program beside the package that loads the built variants and calls them through the dispatcher.
function(_package_program target)
  target_link_libraries(${target} PRIVATE graft_options torch::cpu fmt::fmt
    nlohmann_json::nlohmann_json ${CMAKE_DL_LIBS})
  # The shared precompiled header is position-independent code; executables would be compiled otherwise.
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(${target} PRIVATE -fPIC)
  target_precompile_headers(${target} REUSE_FROM graft_torch_pch)
  if(GRAFT_CUDA_KERNELS)
    target_compile_definitions(${target} PRIVATE GRAFT_WITH_CUDA)
    target_include_directories(${target} SYSTEM PRIVATE ${GRAFT_CUDA_ROOT}/include)
    target_link_libraries(${target} PRIVATE ${GRAFT_CUDART})
  endif()
endfunction()

function(graft_add_kernel_package name)
  cmake_parse_arguments(PACKAGE "" "VERSION" "" ${ARGN})
  if(NOT PACKAGE_VERSION)
    set(PACKAGE_VERSION 1)
  endif()
  string(REPLACE "-" "_" stem ${name})
  _package_sources(${name})
  set(simd_sources ${sources})
  list(FILTER simd_sources INCLUDE REGEX "_simd\\.cpp$")
  set(simd_objects "")
  if(simd_sources)
    _package_simd(${stem} ${simd_sources})
    foreach(isa plain avx2 avx512)
      list(APPEND simd_objects $<TARGET_OBJECTS:kernels_${stem}_simd_${isa}>)
    endforeach()
  endif()
  _package_variant(${name} ${stem} cpu torch-stable-abi211-cpu-x86_64-linux ${PACKAGE_VERSION} ${uid})
  set(variants kernels_${stem}_cpu)
  if(GRAFT_CUDA_KERNELS)
    _package_variant(${name} ${stem} cuda torch-stable-abi211-cu130-x86_64-linux ${PACKAGE_VERSION} ${uid})
    list(APPEND variants kernels_${stem}_cuda)
  endif()
  if(GRAFT_BUILD_TESTS AND tests)
    graft_test(kernels_${stem}_test ${tests})
    _package_program(kernels_${stem}_test)
    add_dependencies(kernels_${stem}_test ${variants})
    set(lesser_isas plain avx2)
    if(name MATCHES "^(attention|linear)$")
      list(APPEND lesser_isas avx512 avx512_bf16)  # common/isa.h
    endif()
    foreach(isa ${lesser_isas})
      # The same cases on lesser processors, in fewer sizes; without a report of their own, since they
      # skip nothing new.
      add_test(NAME kernels_${stem}_${isa} COMMAND kernels_${stem}_test "--gtest_filter=-*cuda*:*Cuda*")
      # Sums in float32 are held against libtorch's own error at that instruction set: fused multiply-adds, which
      # it would take on a newer processor, round half as often.
      set(same_isa "")
      if(isa STREQUAL "plain" AND name MATCHES "^(attention|mlp)$")
        set(same_isa ";ATEN_CPU_CAPABILITY=default;MKL_ENABLE_INSTRUCTIONS=SSE4_2")
      endif()
      set_tests_properties(kernels_${stem}_${isa} PROPERTIES TIMEOUT 900 LABELS cpu
        ENVIRONMENT "GRAFT_CPU_ISA=${isa};GRAFT_TEST_SMALL=1;GTEST_OUTPUT=${same_isa}")
    endforeach()
  endif()
  if(GRAFT_BUILD_TESTS AND GRAFT_BUILD_BENCHMARKS AND benches)
    add_executable(kernels_${stem}_bench ${benches})
    _package_program(kernels_${stem}_bench)
    if(GRAFT_CUDA_KERNELS)
      if(NOT TARGET kernels_bench_copy)
        _cuda_objects(copy_object "" ${_kernels_dir}/common/bench_copy.cu)
        add_library(kernels_bench_copy STATIC ${copy_object})
        set_target_properties(kernels_bench_copy PROPERTIES LINKER_LANGUAGE CXX)
      endif()
      target_link_libraries(kernels_${stem}_bench PRIVATE kernels_bench_copy ${GRAFT_CUDART})
    endif()
    add_dependencies(kernels_${stem}_bench ${variants})
  endif()
endfunction()
