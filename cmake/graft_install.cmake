# `cmake --install` and find_package(graft). libtorch is not installed: a consumer names its torch wheel
# (GRAFT_TORCH_DIR or GRAFT_TORCH_PYTHON), as this build did.
include(CMakePackageConfigHelpers)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/graft)
set_target_properties(graft_base graft PROPERTIES
  INSTALL_RPATH "$ORIGIN;${GRAFT_TORCH_DIR}/lib" VERSION ${PROJECT_VERSION} SOVERSION 0)
set_target_properties(graft_base PROPERTIES EXPORT_NAME base)
target_include_directories(graft_base INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
install(TARGETS graft_options graft_base graft EXPORT graftTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT graftTargets NAMESPACE graft:: DESTINATION ${config_dir})
if(SKBUILD)  # a wheel goes to machines where nobody installed fmt
  install(FILES $<TARGET_FILE:fmt::fmt> RENAME $<TARGET_SONAME_FILE_NAME:fmt::fmt>
    DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(DIRECTORY graft DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(FILES cmake/torch.cmake DESTINATION ${config_dir})
configure_package_config_file(cmake/graftConfig.cmake.in ${CMAKE_BINARY_DIR}/graftConfig.cmake
  INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/graftConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/graftConfig.cmake ${CMAKE_BINARY_DIR}/graftConfigVersion.cmake
  DESTINATION ${config_dir})

if(TARGET graft_cuda)
  install(TARGETS graft_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(TARGETS graft_stub LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/graft_stub)
install(TARGETS graft_canary RUNTIME DESTINATION ${CMAKE_INSTALL_LIBDIR}/graft_helpers)
if(TARGET graft_cli)
  install(TARGETS graft_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(TARGETS graft_commands graft_hub_commands LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(FILES python/graft_kernels/aot.py DESTINATION ${CMAKE_INSTALL_DATADIR}/graft)
endif()
if(GRAFT_SIGSTORE_ROOT)
  install(DIRECTORY ${CMAKE_BINARY_DIR}/share/graft/sigstore DESTINATION ${CMAKE_INSTALL_DATADIR}/graft)
endif()
if(GRAFT_BUILD_KERNELS)
  install(DIRECTORY ${CMAKE_BINARY_DIR}/share/graft/hub DESTINATION ${CMAKE_INSTALL_DATADIR}/graft COMPONENT packages)
endif()
