// The last questions before anything of a package runs with this process's rights, whoever runs it: are these the
// published files, and may they run here?
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "graft/kernel/resolver.h"
#include "graft/kernel/trust.h"

namespace graft::kernel {

// Holds every file of the variant against the digest in its metadata; warns where there is none.
//
// folder      the files to look at: the resolution's own, or a copy of them
// replaced    file name in the folder -> what is looked at in its place
// Throws   IntegrityError `kernel.loader.digest` naming the files that differ.
void require_published_files(const std::string& repository, const Resolution& resolution,
                             const std::filesystem::path& folder,
                             const std::map<std::string, std::filesystem::path>& replaced = {});

// Asks trust about the files of a resolution. record: note the verdict in the journal; not for a dry run.
// Throws   as require_trusted() at TrustStage::kLoad.
void require_loadable(const std::string& repository, const Resolution& resolution,
                      const TrustPolicy& policy, bool record = true);

}  // namespace graft::kernel
