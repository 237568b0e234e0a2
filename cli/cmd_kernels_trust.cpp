// `graft kernels trust`: whose kernels may run here. Edits the policy, shows the journal.
#include <algorithm>
#include <memory>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/hub/client.h"
#include "graft/hub/environment.h"
#include "graft/hub/inventory.h"
#include "graft/io/excerpt.h"
#include "graft/trust/decide.h"
#include "graft/trust/publisher.h"
#include "graft/trust/sigstore/trusted_root.h"

#include "cli/command.h"
#include "cli/output.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

ordered_json json_of(const trust::Policy& policy) {
  auto object = ordered_json::parse(trust::to_text(policy));
  object.erase("schema");
  for (const auto& [name, rule] : policy.signers) {  // those that graft knows of itself too
    object["signers"][name] = {{"issuer", rule.issuer},
                               {"source_repository", rule.source_repository},
                               {"build_signers", rule.build_signers},
                               {"repositories", rule.repositories}};
  }
  return object;
}

std::string text_of(const trust::Policy& policy) {
  std::error_code status;
  std::string text =
      fmt::format("policy          {}{}\n", policy.file.string(),
                  fs::exists(policy.file, status) ? "" : " (not there: the defaults hold)");
  const auto root = trust::sigstore::trusted_root_file();
  text += fmt::format("trusted root    {}\n",
                      root.empty() ? "none: signatures are not looked at" : root.string());
  text += fmt::format("journal         {}\n", trust::journal_file().string());
  text += fmt::format("signatures      {}\n", policy.signatures == trust::Signatures::kRequired
                                                  ? "required of every package from the Hub"
                                                  : "must verify where there is one");
  text += fmt::format("hub publishers  {}\n", policy.trust_hub_publishers
                                                  ? "trusted where the Hub trusts them"
                                                  : "need an entry");
  text +=
      fmt::format("local folders   {}\n", policy.trust_local_folders ? "trusted" : "need an entry");
  text += fmt::format("rollback        {}\n", policy.refuse_rollback ? "refused" : "warned about");
  for (const auto& [name, entry] : policy.allow) {
    text += fmt::format("allow  {}", name);
    text +=
        entry.commits.empty() ? "" : fmt::format("  commits {}", fmt::join(entry.commits, ", "));
    text +=
        entry.signers.empty() ? "" : fmt::format("  signers {}", fmt::join(entry.signers, ", "));
    text += entry.note.empty() ? "\n" : fmt::format("  ({})\n", io::excerpt(entry.note));
  }
  for (const auto& [name, note] : policy.deny) {
    text += fmt::format("deny   {}{}\n", io::excerpt(name, 240),
                        note.empty() ? "" : fmt::format("  ({})", io::excerpt(note)));
  }
  for (const auto& [name, rule] : policy.signers) {
    text += fmt::format("signer {}  signs for {}\n", io::excerpt(name),
                        fmt::join(rule.repositories, ", "));
  }
  return text;
}

int list(const CommonOptions& common) {
  const auto policy = trust::read_policy();
  if (common.json) {
    auto object = json_of(policy);
    object["policy"] = policy.file.string();
    object["trusted_root"] = trust::sigstore::trusted_root_file().string();
    object["journal"] = trust::journal_file().string();
    print_json(object);
  } else {
    write_report(text_of(policy));
  }
  return 0;
}

// Changes the policy and says what it is then.
int change(const TrustChangeOptions& options, const std::string& did,
           const std::function<void(trust::Policy&)>& edit) {
  const auto policy = trust::change_policy(edit, options.dry_run);
  if (options.common.json) {
    auto object = json_of(policy);
    object["policy"] = policy.file.string();
    object["dry_run"] = options.dry_run;
    print_json(object);
  } else {
    write_report(fmt::format("{}{}: {}\n", options.dry_run ? "would be " : "", did,
                             fmt::join(options.names, ", ")));
    print_note(
        options.common,
        fmt::format("{} {}", options.dry_run ? "not written:" : "written:", policy.file.string()));
  }
  return 0;
}

int allow(const TrustChangeOptions& options) {
  for (const auto& name : options.names) {
    trust::check_pattern(name);
  }
  return change(options, "allowed", [&](trust::Policy& policy) {
    for (const auto& name : options.names) {
      auto& entry = policy.allow[name];
      for (const auto& commit : options.commits) {
        if (std::find(entry.commits.begin(), entry.commits.end(), commit) == entry.commits.end()) {
          entry.commits.push_back(commit);
        }
      }
      for (const auto& signer : options.signers) {
        if (std::find(entry.signers.begin(), entry.signers.end(), signer) == entry.signers.end()) {
          entry.signers.push_back(signer);
        }
      }
      entry.note = options.note.empty() ? entry.note : options.note;
    }
  });
}

int deny(const TrustChangeOptions& options) {
  for (const auto& name : options.names) {
    trust::check_deniable(name);
  }
  return change(options, "denied", [&](trust::Policy& policy) {
    for (const auto& name : options.names) {
      policy.deny[name] = options.note;
    }
  });
}

int remove(const TrustChangeOptions& options) {
  return change(options, "removed", [&](trust::Policy& policy) {
    for (const auto& name : options.names) {
      if (policy.allow.erase(name) + policy.deny.erase(name) == 0) {
        throw NotFound(
            "cli.trust", "entry",
            fmt::format("`{}`: expected an entry of that name, got none", io::excerpt(name, 240)),
            "`graft kernels trust list` shows all");
      }
    }
  });
}

ordered_json json_of(const trust::JournalEntry& entry) {
  return {{"time", trust::format_time(entry.time_s)},
          {"repository", entry.repository},
          {"origin", entry.origin},
          {"ref", entry.ref},
          {"commit", entry.commit},
          {"variant", entry.variant},
          {"digest", entry.digest},
          {"signer", entry.signer},
          {"allowed", entry.allowed},
          {"reason", entry.reason},
          {"endpoint", entry.endpoint}};
}

int journal(const TrustJournalOptions& options) {
  const trust::Journal journal(trust::journal_file());
  std::vector<const trust::JournalEntry*> shown;
  for (const auto& entry : journal.entries()) {
    if (options.repository.empty() || trust::names(options.repository, entry.repository)) {
      shown.push_back(&entry);
    }
  }
  if (options.last > 0 && shown.size() > options.last) {
    shown.erase(shown.begin(), shown.end() - static_cast<ptrdiff_t>(options.last));
  }
  if (options.common.json) {
    ordered_json object = {{"journal", journal.file().string()},
                           {"broken_lines", journal.num_broken()},
                           {"entries", ordered_json::array()}};
    for (const auto* entry : shown) {
      object["entries"].push_back(json_of(*entry));
    }
    print_json(object);
    return 0;
  }
  for (const auto* entry : shown) {
    write_report(fmt::format(
        "{}  {:7}  {}{}  {}  {}{}\n", trust::format_time(entry->time_s),
        entry->allowed ? "allowed" : "REFUSED", io::excerpt(entry->repository, 240),
        entry->commit.empty() ? "" : "@" + entry->commit.substr(0, 12), io::excerpt(entry->variant),
        io::excerpt(entry->reason),
        entry->signer.empty() ? ""
                              : fmt::format("  signed by {}", io::excerpt(entry->signer, 240))));
  }
  print_note(options.common,
             fmt::format("{} of {} decisions in {}{}", shown.size(), journal.entries().size(),
                         journal.file().string(),
                         journal.num_broken() == 0
                             ? ""
                             : fmt::format(", {} broken lines passed over", journal.num_broken())));
  return 0;
}

// Publishers with a kernel in the cache.
std::vector<std::string> cached_publishers() {
  std::set<std::string> publishers;
  const auto add = [&](const fs::path& cache, hub::RepoType type) {
    for (const auto& repository : hub::list_cached(cache, type)) {
      const auto has_variants = [](const auto& commit) { return !commit.variants.empty(); };
      if (std::any_of(repository.commits.begin(), repository.commits.end(), has_variants)) {
        publishers.insert(trust::publisher_of(repository.repo_id));
      }
    }
  };
  add(hub::kernels_cache_folder(), hub::RepoType::kKernel);
  add(hub::cache_folder(), hub::RepoType::kModel);
  return {publishers.begin(), publishers.end()};
}

// Asks the Hub about publishers, so that what they published is loaded offline later.
int ask(const TrustAskOptions& options) {
  const hub::Client client;
  trust::Journal journal(trust::journal_file());
  ordered_json rows = ordered_json::array();
  for (const auto& publisher :
       options.publishers.empty() ? cached_publishers() : options.publishers) {
    trust::check_pattern(publisher + "/*");
    const bool trusted = client.is_trusted_publisher(publisher);
    if (!options.dry_run && !trust::remember_word(journal, client.endpoint(), publisher, trusted)) {
      print_note(options.common,
                 fmt::format("`{}` cannot be written: not remembered", journal.file().string()));
    }
    rows.push_back({{"publisher", publisher}, {"trusted", trusted}});
    if (!options.common.json) {
      write_report(fmt::format("{}  {}\n", trusted ? "trusted    " : "not trusted", publisher));
    }
  }
  if (options.common.json) {
    print_json(
        {{"endpoint", client.endpoint()}, {"publishers", rows}, {"dry_run", options.dry_run}});
  }
  return 0;
}

// What would be decided about a variant folder; nothing is loaded, asked or noted.
int check(const TrustCheckOptions& options) {
  trust::Candidate candidate;
  candidate.folder = fs::weakly_canonical(options.folder);
  candidate.variant = candidate.folder.filename().string();
  candidate.repository =
      options.repository.empty() ? candidate.folder.string() : options.repository;
  candidate.origin = options.repository.empty() ? trust::Origin::kLocal : trust::Origin::kHub;
  candidate.commit = options.commit;
  candidate.endpoint = hub::endpoint();
  candidate.last_word_counts = true;
  if (options.trusted_publisher) {
    candidate.trusted_publisher = true;
  }
  const auto verdict = trust::decide(candidate, {.record = false});
  if (options.common.json) {
    print_json({{"repository", candidate.repository},
                {"allowed", verdict.allowed},
                {"reason", trust::to_text(verdict.reason)},
                {"text", verdict.text},
                {"way_on", verdict.way_on},
                {"signature", verdict.signature},
                {"signer", verdict.signer},
                {"digest", verdict.digest}});
  } else {
    write_report(
        fmt::format("{}: {} ({})\n{}\n{}", verdict.allowed ? "allowed" : "refused", verdict.text,
                    trust::to_text(verdict.reason), verdict.signature,
                    verdict.way_on.empty() ? "" : fmt::format("hint: {}\n", verdict.way_on)));
  }
  return verdict.allowed ? 0 : 4;
}

CLI::App* add_change(CLI::App& trust, Chosen& chosen, const std::string& name,
                     const std::string& description, const std::string& what,
                     int (*run)(const TrustChangeOptions&),
                     const std::shared_ptr<TrustChangeOptions>& options) {
  auto* command = trust.add_subcommand(name, description);
  command->add_option("NAME", options->names, what)->required();
  command->add_flag("--dry-run", options->dry_run, "Write nothing");
  add_common_options(*command, options->common);
  command->callback([options, run, &chosen] {
    chosen = {[options, run] { return run(*options); }, &options->common};
  });
  return command;
}

void add_changes(CLI::App& trust, Chosen& chosen) {
  auto allow_options = std::make_shared<TrustChangeOptions>();
  auto* command = add_change(trust, chosen, "allow", "Let a publisher's or a repository's code run",
                             "org/name, org/* or a folder", &allow, allow_options);
  command->add_option("--commit", allow_options->commits,
                      "This commit alone; may be given several times");
  command->add_option("--signer", allow_options->signers,
                      "Only signed by this entry of `signers`; may be given several times");
  command->add_option("--note", allow_options->note, "Why, for whoever reads the policy");
  auto deny_options = std::make_shared<TrustChangeOptions>();
  add_change(trust, chosen, "deny", "Never let it run, whoever trusts it",
             "org/name, org/*, a folder, a commit or a signer", &deny, deny_options)
      ->add_option("--note", deny_options->note, "Why, for whoever reads the policy");
  add_change(trust, chosen, "remove", "Take an entry out again", "Name of an entry", &remove,
             std::make_shared<TrustChangeOptions>());
}

}  // namespace

void add_kernels_trust(CLI::App& kernels, Chosen& chosen) {
  auto* trust = kernels.add_subcommand(
      "trust", "Whose kernels may run here: the policy and the journal (docs/trust.md)");
  trust->require_subcommand(1);
  auto common = std::make_shared<CommonOptions>();
  auto* list_command = trust->add_subcommand("list", "Show the policy with what variables add");
  add_common_options(*list_command, *common);
  list_command->callback([common, &chosen] {
    chosen = {[common] { return list(*common); }, common.get()};
  });
  add_changes(*trust, chosen);

  auto asked = std::make_shared<TrustAskOptions>();
  auto* ask_command = trust->add_subcommand(
      "ask", "Ask the Hub which publishers it trusts, and remember that for loads offline");
  ask_command->add_option("PUBLISHER", asked->publishers,
                          "Organisations; none: those whose kernels are in the cache");
  ask_command->add_flag("--dry-run", asked->dry_run, "Remember nothing");
  add_common_options(*ask_command, asked->common);
  ask_command->callback([asked, &chosen] {
    chosen = {[asked] { return ask(*asked); }, &asked->common};
  });

  auto seen = std::make_shared<TrustJournalOptions>();
  auto* journal_command =
      trust->add_subcommand("journal", "Show what was loaded or refused here, and when");
  journal_command->add_option("--repository", seen->repository, "org/name or org/*");
  journal_command->add_option("-n,--last", seen->last, "The last so many");
  add_common_options(*journal_command, seen->common);
  journal_command->callback([seen, &chosen] {
    chosen = {[seen] { return journal(*seen); }, &seen->common};
  });

  auto checked = std::make_shared<TrustCheckOptions>();
  auto* check_command = trust->add_subcommand(
      "check", "Verify the signature in a variant's folder and say what would be decided");
  check_command->add_option("FOLDER", checked->folder, "Folder with metadata.json")->required();
  check_command->add_option("--repository", checked->repository,
                            "Decide as if it came from this repository of the Hub");
  check_command->add_option("--commit", checked->commit, "… at this commit");
  check_command->add_flag("--trusted-publisher", checked->trusted_publisher,
                          "… whose publisher the Hub trusts");
  add_common_options(*check_command, checked->common);
  check_command->callback([checked, &chosen] {
    chosen = {[checked] { return check(*checked); }, &checked->common};
  });
}

}  // namespace graft::cli
