#pragma once

namespace graft {

// Version of graft itself; CMake reads it from here.
inline constexpr char kVersion[] = "0.1.0";

}  // namespace graft
