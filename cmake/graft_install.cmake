# Filled in with the install rules and graftConfig.cmake.
