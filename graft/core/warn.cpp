#include "graft/core/warn.h"

#include "graft/core/log.h"

namespace graft {

void warn(std::string_view message) { log()->warn("{}", message); }

void inform(std::string_view message) { log()->info("{}", message); }

}  // namespace graft
