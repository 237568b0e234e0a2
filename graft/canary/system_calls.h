// A seccomp filter: which questions the process may ask the system. What a kernel has no business
// with is caught, named in the report, and ends the process; opening files is tried and, where
// Landlock says no, named as well.
#pragma once

#include <string>
#include <vector>

namespace graft::canary {

enum class Strictness {
  kReport,  // what is forbidden is reported and ends the process
  kRefuse,  // it fails with EPERM and the process goes on
};

// Installs the filter for all threads. Until set_strictness(), everything that is forbidden fails
// with EPERM, so that it can be tried.
//
// readable  folders below which a file that may not be read is no offence
// for_cuda  CUDA's driver runs threads that block every signal, in which nothing can be caught: what is
//           forbidden fails at once, unnamed. It may also make, bind and listen at a Unix socket of kind
//           SOCK_SEQPACKET, which it offers other processes (`@cuda-uvmfd-…`) and fails without; nothing
//           may be connected or sent to.
// Returns an empty text, or why it could not be done.
std::string restrict_system_calls(const std::vector<std::string>& readable, bool for_cuda);

void set_strictness(Strictness strictness);

// How many forbidden calls failed so far.
int num_refused();

}  // namespace graft::canary
