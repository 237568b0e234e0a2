// The JSON that the local Hub answers with, and the shape of a refusal.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "graft/hub/server/protocol.h"
#include "graft/hub/server/repositories.h"

namespace graft::hub::server {

Answer json_answer(const nlohmann::ordered_json& json);

// code   X-Error-Code; empty: none
Answer refusal(int status, std::string_view code, const std::string& message);

// Files and folders below `folder` (empty: the whole tree) by path; direct members only unless
// `recursive`. Empty when there is no such folder.
std::vector<nlohmann::ordered_json> tree_entries(const Tree& tree, const std::string& folder,
                                                 bool recursive);

// One file or folder; null when the tree has neither.
nlohmann::ordered_json tree_entry(const Tree& tree, const std::string& path);

nlohmann::ordered_json repository_info(const std::string& type, const std::string& id,
                                       const Tree& tree, const AccessRules::Repo& access,
                                       bool with_blobs);

nlohmann::ordered_json refs_json(const Repository& repository);

}  // namespace graft::hub::server
