#include "cli/hub_commands.h"

extern "C" void graft_hub_start(const graft::hub::server::ServerOptions& options,
                                std::unique_ptr<graft::hub::server::Running>& server) {
  server = std::make_unique<graft::hub::server::Server>(options);
}
