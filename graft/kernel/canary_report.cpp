#include "graft/kernel/canary_report.h"

#include <algorithm>
#include <csignal>
#include <cstring>

#include <fmt/format.h>
#include <sys/wait.h>

namespace graft::kernel {

namespace {

using nlohmann::json;

constexpr size_t kShownOutputBytes = 400;

// Lines that are no JSON are passed over: the package's code shares the process with the helper.
std::vector<json> lines_of(const std::string& report) {
  std::vector<json> lines;
  for (size_t start = 0; start < report.size();) {
    const size_t end = std::min(report.find('\n', start), report.size());
    json line = json::parse(report.begin() + static_cast<std::ptrdiff_t>(start),
                            report.begin() + static_cast<std::ptrdiff_t>(end), nullptr,
                            /*allow_exceptions=*/false);
    if (line.is_object()) {
      lines.push_back(std::move(line));
    }
    start = end + 1;
  }
  return lines;
}

// Text of a stranger's program as one printable line.
std::string printable(std::string_view text) {
  std::string line;
  for (const char c : text) {
    line += static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f ? ' ' : c;
  }
  return line;
}

std::string with_output(std::string detail, const std::string& output) {
  if (output.empty()) {
    return detail;
  }
  const size_t shown = std::min(output.size(), kShownOutputBytes);
  return fmt::format("{}; it wrote: {}", detail,
                     printable(std::string_view(output).substr(output.size() - shown)));
}

CanaryVerdict ended_by_signal(int signal, const std::string& step) {
  switch (signal) {
    case SIGSYS:
      return {.status = CanaryStatus::kForbidden,
              .detail = "asked the system for what a kernel may not " + step};
    case SIGXCPU:
      return {.status = CanaryStatus::kHang, .detail = "used up its processor time " + step};
    case SIGXFSZ:
      return {.status = CanaryStatus::kOutput, .detail = "wrote too large a file " + step};
    default:
      return {.status = CanaryStatus::kCrash,
              .detail = fmt::format("signal {} ({}) {}", signal, strsignal(signal), step)};
  }
}

CanaryVerdict ended_early(std::optional<int> status, const std::string& step) {
  if (status && WIFSIGNALED(*status)) {
    return ended_by_signal(WTERMSIG(*status), step);
  }
  return {.status = CanaryStatus::kExit,
          .detail = status ? fmt::format("ended the process with status {} {}",
                                         WEXITSTATUS(*status), step)
                           : fmt::format("ended the process {}", step)};
}

CanaryVerdict done(const json& line) {
  CanaryVerdict verdict;
  verdict.num_checks = line.at("num_checks");
  for (const auto& layer : line.value("unchecked", json::array())) {
    verdict.unchecked.push_back(printable(layer.get<std::string>()));
  }
  for (const auto& answer : line.at("wrong")) {
    verdict.wrong.push_back({answer.at("layer"), answer.at("variant"), answer.at("dtype"),
                             printable(answer.at("reason").get<std::string>())});
  }
  return verdict;
}

CanaryVerdict judge(const std::vector<json>& lines, std::optional<int> status,
                    const std::string& step) {
  const auto last = [&](const char* key) {
    return std::find_if(lines.rbegin(), lines.rend(),
                        [&](const json& line) { return line.contains(key); });
  };
  for (const auto& [key, outcome] : {std::pair{"forbidden", CanaryStatus::kForbidden},
                                     std::pair{"out_of_memory", CanaryStatus::kOutOfMemory},
                                     std::pair{"load", CanaryStatus::kLoad},
                                     std::pair{"not_isolated", CanaryStatus::kNotIsolated}}) {
    if (const auto line = last(key); line != lines.rend()) {
      return {.status = outcome,
              .detail = printable(fmt::format("{} {}", line->at(key).get<std::string>(), step))};
    }
  }
  const auto finished = last("done");
  const bool right_end = !status || (WIFEXITED(*status) && WEXITSTATUS(*status) == 0);
  if (finished != lines.rend() && right_end) {
    return done(*finished);
  }
  if (last("step") == lines.rend()) {  // the package's code never ran
    return {.status = CanaryStatus::kNotIsolated,
            .detail = "the helper ended before the package was opened: " +
                      ended_early(status, "").detail};
  }
  return ended_early(status, step);
}

}  // namespace

std::string canary_request(const CanaryRequest& request) {
  const Metadata& metadata = request.resolution.metadata;
  json libraries = json::array();
  for (const auto& library : request.libraries) {
    libraries.push_back(library.string());
  }
  return json{{"repository", request.repository},
              {"folder", request.resolution.folder.string()},
              {"variant", request.resolution.variant},
              {"source", request.resolution.source},
              {"name", metadata.name},
              {"id", metadata.id},
              {"version", metadata.version},
              {"backend", metadata.backend},
              {"libraries", libraries},
              {"run_folder", request.folder.string()},
              {"require_isolation", request.require_isolation},
              {"memory_bytes", request.limits.memory_bytes},
              {"scratch_bytes", request.limits.scratch_bytes},
              {"run_seconds", request.limits.run.count()}}
      .dump();
}

CanaryRequest parse_canary_request(const std::string& text) {
  const json from = json::parse(text);
  CanaryRequest request;
  const auto path = [&](const char* key) { return from.at(key).get<std::string>(); };
  request.repository = from.at("repository");
  request.resolution.folder = path("folder");
  request.resolution.variant = from.at("variant");
  request.resolution.source = from.at("source");
  request.resolution.metadata.name = from.at("name");
  request.resolution.metadata.id = from.at("id");
  request.resolution.metadata.version = from.at("version");
  request.resolution.metadata.backend = from.at("backend");
  for (const auto& library : from.at("libraries")) {
    request.libraries.emplace_back(library.get<std::string>());
  }
  request.folder = path("run_folder");
  request.require_isolation = from.at("require_isolation");
  request.limits.memory_bytes = from.at("memory_bytes");
  request.limits.scratch_bytes = from.at("scratch_bytes");
  request.limits.run = std::chrono::duration<double>(from.at("run_seconds").get<double>());
  return request;
}

std::string last_step(const std::string& report) {
  std::string step;
  for (const auto& line : lines_of(report)) {
    if (const auto found = line.find("step"); found != line.end() && found->is_string()) {
      step = *found == "open" ? "while it was opened" : "while " + found->get<std::string>();
    }
  }
  return printable(step);
}

CanaryVerdict judge_report(const std::string& report, std::optional<int> status,
                           const std::string& output) {
  const auto lines = lines_of(report);
  CanaryVerdict verdict;
  try {
    verdict = judge(lines, status, last_step(report));
  } catch (const json::exception&) {  // lines of another form than the helper's
    verdict = ended_early(status, last_step(report));
  }
  for (const auto& line : lines) {
    if (const auto gap = line.find("gap"); gap != line.end() && gap->is_string()) {
      verdict.gaps.push_back(printable(gap->get<std::string>()));
    }
  }
  if (verdict.status != CanaryStatus::kOk) {
    verdict.detail = with_output(std::move(verdict.detail), output);
  }
  return verdict;
}

}  // namespace graft::kernel
