// Libraries of the program that are opened only when a command needs them.
#pragma once

#include <string_view>

namespace graft::cli {

// Opens a library that lies beside the program and returns one symbol of it.
//
// file    e.g. `libgraft_commands.so`
// flags   of dlopen
// reason  the error's code after `cli.`
// hint    of the error when the library cannot be opened
// Throws   LoadError `cli.<reason>`.
void* library_symbol(std::string_view file, const char* symbol, int flags, std::string_view reason,
                     std::string_view hint);

}  // namespace graft::cli
