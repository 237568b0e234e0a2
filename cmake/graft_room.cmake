# graft_room(<name> [TORCH precompiled_header] [EXCLUDE regex] [DEPS target…])
# One folder under graft/ as an object library `graft_<name>`, its tests as `graft_<name>_test`.
# Sources are found by suffix: *_test.cpp are tests, *_bench.cpp are benchmarks, the rest is the room.
function(graft_room name)
  cmake_parse_arguments(ROOM "" "TORCH;EXCLUDE" "DEPS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cpp)
  if(ROOM_EXCLUDE)
    list(FILTER sources EXCLUDE REGEX ${ROOM_EXCLUDE})
  endif()
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
  list(FILTER sources EXCLUDE REGEX "_(test|bench|fuzz)\\.cpp$")
  if(NOT sources)
    return()
  endif()
  add_library(graft_${name} OBJECT ${sources})
  target_link_libraries(graft_${name} PUBLIC graft_options nlohmann_json::nlohmann_json
    fmt::fmt spdlog::spdlog_header_only ${ROOM_DEPS})
  if(ROOM_TORCH)
    target_link_libraries(graft_${name} PUBLIC torch::headers)
    target_precompile_headers(graft_${name} REUSE_FROM ${ROOM_TORCH})
    set_property(GLOBAL APPEND PROPERTY GRAFT_TORCH_ROOMS graft_${name})
  else()
    set_property(GLOBAL APPEND PROPERTY GRAFT_BASE_ROOMS graft_${name})
  endif()
  if(GRAFT_BUILD_TESTS AND tests)
    graft_test(graft_${name}_test ${tests})
    if(ROOM_TORCH)
      target_link_libraries(graft_${name}_test PRIVATE graft::graft)
      target_precompile_headers(graft_${name}_test REUSE_FROM ${ROOM_TORCH})
      # The header was compiled with -fPIC; an executable's -fPIE would make the compiler skip it.
      set_target_properties(graft_${name}_test PROPERTIES POSITION_INDEPENDENT_CODE OFF)
      target_compile_options(graft_${name}_test PRIVATE -fPIC)
    else()
      target_link_libraries(graft_${name}_test PRIVATE graft::base ${ROOM_DEPS})
    endif()
  endif()
endfunction()

# graft_test(<target> <source>…): a GoogleTest program whose cases ctest knows by name.
function(graft_test target)
  add_executable(${target} ${ARGN})
  target_link_libraries(${target} PRIVATE graft_options GTest::gmock GTest::gtest GTest::gtest_main)
  target_compile_definitions(${target} PRIVATE
    GRAFT_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data" GRAFT_BINARY_DIR="${CMAKE_BINARY_DIR}")
  # What is tested is compiled as it is shipped; the tests themselves need not be fast.
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
  string(REGEX REPLACE "^graft_|_test$" "" prefix ${target})
  # One process per test program: libtorch takes longer to start than most cases take to run.
  add_test(NAME ${prefix} COMMAND ${target})
  set_tests_properties(${prefix} PROPERTIES TIMEOUT 900 LABELS cpu
    SKIP_REGULAR_EXPRESSION "^$" ENVIRONMENT "GRAFT_TRUST_JOURNAL=${CMAKE_BINARY_DIR}/test_trust.jsonl")
endfunction()
