# The trusted root of the public Sigstore instance: certificates and keys by which the signature of a package is
# verified. It comes from the PyPI package `sigstore` (Apache-2.0) and is pinned by its hash, so that what this
# build trusts stands in this file and changes only with it. Without the package nothing is shipped: signatures
# are then reported as not looked at, and a policy that demands them refuses.
set(_root_sha256 6494e21ea73fa7ee769f85f57d5a3e6a08725eae1e38c755fc3517c9e6bc0b66)
if(NOT GRAFT_SIGSTORE_ROOT)
  execute_process(
    COMMAND ${GRAFT_TORCH_PYTHON} -c
      "import importlib.util as u, pathlib; s = u.find_spec('sigstore'); print(pathlib.Path(s.submodule_search_locations[0], '_store', 'https%3A%2F%2Ftuf-repo-cdn.sigstore.dev', 'trusted_root.json') if s else '')"
    OUTPUT_VARIABLE _root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(_root)
    set(GRAFT_SIGSTORE_ROOT "${_root}" CACHE FILEPATH "trusted_root.json of the public Sigstore instance" FORCE)
  endif()
endif()
set(_shipped_root ${CMAKE_BINARY_DIR}/share/graft/sigstore/trusted_root.json)
if(EXISTS "${GRAFT_SIGSTORE_ROOT}")
  file(SHA256 "${GRAFT_SIGSTORE_ROOT}" _found_sha256)
endif()
if(NOT EXISTS "${GRAFT_SIGSTORE_ROOT}")
  message(STATUS "graft: signatures are NOT verified: no trusted root (PyPI's sigstore 4.5.1 brings it)")
  set(GRAFT_SIGSTORE_ROOT "")
  file(REMOVE ${_shipped_root})
elseif(NOT _found_sha256 STREQUAL _root_sha256)
  message(WARNING "[cmake.sigstore] `${GRAFT_SIGSTORE_ROOT}`: expected sha256 ${_root_sha256}, got ${_found_sha256}; "
    "it is not shipped, and signatures are NOT verified\n"
    "hint: install sigstore==4.5.1, or compare the two roots and change the hash in cmake/sigstore_root.cmake")
  set(GRAFT_SIGSTORE_ROOT "")
  file(REMOVE ${_shipped_root})
else()
  configure_file("${GRAFT_SIGSTORE_ROOT}" ${_shipped_root} COPYONLY)
endif()
