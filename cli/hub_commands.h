// The local Hub lives in a library of its own (libgraft_hub_commands.so): only `graft hub serve`
// needs an HTTP server.
#pragma once

#include <memory>

#include "graft/hub/server/server.h"

// The one symbol that the library exports for the program: a server that answers until it is
// destroyed. Throws as its constructor.
extern "C" void graft_hub_start(const graft::hub::server::ServerOptions& options,
                                std::unique_ptr<graft::hub::server::Running>& server);
