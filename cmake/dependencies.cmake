# Everything that graft stands on, each with its reason. Debian 12 package names in brackets.
find_package(Threads REQUIRED)
find_package(nlohmann_json REQUIRED)  # JSON trees [nlohmann-json3-dev]
find_package(fmt REQUIRED)            # text formatting [libfmt-dev]
find_package(spdlog REQUIRED)         # log sinks, header-only here [libspdlog-dev]
find_package(CLI11 REQUIRED)          # command line [libcli11-dev]
find_package(OpenSSL REQUIRED)          # hashes, TLS [libssl-dev]
find_package(CURL REQUIRED)             # HTTP of the Hub [libcurl4-openssl-dev]

# One fmt in every file: PyTorch's wheel brings headers of another version, which its include folder would put first.
# The library and not the headers alone: they cost every file four seconds of compiling.
get_target_property(_fmt_headers fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/fmt_headers)
file(CREATE_LINK ${_fmt_headers}/fmt ${CMAKE_BINARY_DIR}/fmt_headers/fmt SYMBOLIC)
target_include_directories(graft_options SYSTEM BEFORE INTERFACE
  $<BUILD_INTERFACE:${CMAKE_BINARY_DIR}/fmt_headers>)

# Static archives of the two text libraries: the program then runs on machines without them.
find_library(GRAFT_PCRE2_LIBRARY NAMES libpcre2-8.a pcre2-8 REQUIRED)    # split patterns [libpcre2-dev]
find_library(GRAFT_UTF8PROC_LIBRARY NAMES libutf8proc.a utf8proc REQUIRED)  # Unicode [libutf8proc-dev]
add_library(graft_text_deps INTERFACE)
target_compile_definitions(graft_text_deps INTERFACE PCRE2_CODE_UNIT_WIDTH=8 UTF8PROC_STATIC)
target_link_libraries(graft_text_deps INTERFACE ${GRAFT_PCRE2_LIBRARY} ${GRAFT_UTF8PROC_LIBRARY})

# HTTP server of `graft hub serve` [libcpp-httplib-dev]. The definition is the one that Debian compiled
# the library with: it changes the layout of its classes.
find_library(GRAFT_HTTPLIB_LIBRARY NAMES cpp-httplib REQUIRED)
add_library(graft_http_server INTERFACE)
target_compile_definitions(graft_http_server INTERFACE CPPHTTPLIB_OPENSSL_SUPPORT)
target_link_libraries(graft_http_server INTERFACE ${GRAFT_HTTPLIB_LIBRARY})

if(GRAFT_BUILD_TESTS)
  find_package(GTest REQUIRED)        # tests [libgtest-dev, libgmock-dev]
  include(GoogleTest)
endif()

include(torch)
