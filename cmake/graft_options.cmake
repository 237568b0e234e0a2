# Compiler flags that every target of ours gets. Third-party headers come in as SYSTEM.
add_library(graft_options INTERFACE)
# GCC 12 reports overlaps inside its own std::string operator+ (-Wrestrict, GCC bug 105651).
target_compile_options(graft_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-missing-field-initializers -Wno-restrict -fno-gnu-unique>)
target_include_directories(graft_options INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)

if(GRAFT_SANITIZE)
  target_compile_options(graft_options INTERFACE -fsanitize=${GRAFT_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(graft_options INTERFACE -fsanitize=${GRAFT_SANITIZE})
endif()

if(NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(GRAFT_CCACHE ccache)
  if(GRAFT_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${GRAFT_CCACHE})
  endif()
endif()
find_program(GRAFT_MOLD mold)
if(GRAFT_MOLD)
  add_link_options(-fuse-ld=mold)
endif()
