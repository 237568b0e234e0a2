// Kernel repositories from a Hub of our own: what is asked, what is fetched, what the cache answers.

#include "graft/hub/snapshot.h"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/hub/redirect.h"
#include "graft/hub/server/test_hub.h"

namespace graft::hub {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr char kRepo[] = "acme/relu";
constexpr char kCpu[] = "torch-stable-abi211-cpu-x86_64-linux";
constexpr char kCuda[] = "torch-stable-abi211-cu130-x86_64-linux";

std::string metadata(int version) {
  return fmt::format(R"({{"name": "relu", "version": {}}})", version);
}

class Snapshot : public testing::Test {
 protected:
  Snapshot() : hub_("snapshot") {
    add_version(1, {kCpu, kCuda});
    options_.permit = [this](const KernelFetch& fetch) {
      ++permits_;
      if (!fetch.client.is_trusted_publisher(fetch.repo_id.substr(0, fetch.repo_id.find('/')))) {
        throw IntegrityError("test", "publisher", fetch.repo_id);
      }
    };
  }

  // A version's branch with variants of two files each; `salt` makes another commit.
  void add_version(int version, const std::vector<std::string>& variants,
                   const std::string& salt = "") {
    for (const auto& variant : variants) {
      const auto folder = fmt::format("kernels/{}/refs/v{}/build/{}/", kRepo, version, variant);
      hub_.put(folder + "metadata.json", metadata(version));
      hub_.put(folder + "_relu.abi3.so", fmt::format("library {} {} {}", version, variant, salt));
    }
  }

  KernelSnapshot fetch(const std::string& ref, const std::string& repo = kRepo) {
    hub_.start();
    return snapshot_kernel(Client(), {repo, ref}, options_);
  }

  static std::string library(const KernelSnapshot& snapshot) {
    std::ifstream in(snapshot.build / snapshot.variant / "_relu.abi3.so");
    return {std::istreambuf_iterator<char>(in), {}};
  }

  void choose(const std::string& variant) {
    options_.choose = [variant](const std::vector<std::string>& names) {
      std::vector<std::string> chosen = names;
      std::erase_if(chosen, [&](const auto& name) { return name != variant; });
      return chosen;
    };
  }

  void go_offline() {
    hub_.stop();
    hub_.set("HF_HUB_OFFLINE", "1");
  }

  server::TestHub hub_;
  KernelSnapshotOptions options_;
  int permits_ = 0;
};

TEST_F(Snapshot, OfTwoFilesCostsFiveRequestsColdAndOneWarm) {
  const auto cold = fetch("v1");
  EXPECT_EQ(cold.variant, kCpu);
  EXPECT_THAT(cold.variants, ElementsAre(kCpu, kCuda));
  EXPECT_EQ(library(cold), fmt::format("library 1 {} ", kCpu));
  EXPECT_EQ(cold.bytes_fetched, metadata(1).size() + library(cold).size());
  EXPECT_EQ(cold.revision.ref, "v1");
  EXPECT_FALSE(cold.from_cache);
  EXPECT_THAT(hub_.asked(), SizeIs(5));

  const auto warm = fetch("v1");
  EXPECT_EQ(warm.bytes_fetched, 0U);
  EXPECT_THAT(hub_.asked(), ElementsAre("GET /api/kernels/acme/relu/refs"));
  EXPECT_EQ(permits_, 1);

  const auto known = fetch(cold.revision.commit);
  EXPECT_EQ(library(known), library(cold));
  EXPECT_THAT(hub_.asked(true), IsEmpty());
  EXPECT_FALSE(fs::exists(hub_.cache() / "kernels--acme--relu/snapshots" / cold.revision.commit /
                          "build" / kCuda));
}

TEST_F(Snapshot, OfARepositoryOfManyPagesListsTheChosenVariantAlone) {
  hub_.options().page_size = 3;
  choose(kCuda);
  EXPECT_EQ(library(fetch("v1")), fmt::format("library 1 {} ", kCuda));
  const auto asked = hub_.asked();
  const auto trees = std::count_if(asked.begin(), asked.end(), [](const std::string& row) {
    return row.find("/tree/") != std::string::npos;
  });
  EXPECT_EQ(trees, 3);  // the page that was not enough, the names, the variant
  EXPECT_THAT(asked, testing::Contains(HasSubstr(std::string("/build/") + kCuda)));
  EXPECT_THAT(asked, testing::Not(testing::Contains(HasSubstr(std::string("/build/") + kCpu))));
}

TEST_F(Snapshot, IsAnsweredOfflineByVersionByCommitAndByDefault) {
  const auto cold = fetch("v1");
  add_version(3, {kCpu});
  EXPECT_EQ(fetch("v3").revision.ref, "v3");
  EXPECT_EQ(fetch("v1").revision.newest, 3);
  go_offline();
  for (const std::string& ref : {std::string("v1"), std::string(), cold.revision.commit}) {
    const auto found = fetch(ref);
    EXPECT_EQ(found.revision.commit, cold.revision.commit) << ref;
    EXPECT_EQ(found.variant, kCpu);
    EXPECT_TRUE(found.from_cache);
  }
  EXPECT_EQ(library(fetch("v3")), fmt::format("library 3 {} ", kCpu));
  EXPECT_THROW(fetch("v2"), NotFound);
  // As Python leaves it: no ref, no listing.
  fs::remove_all(hub_.cache() / "kernels--acme--relu/refs");
  fs::remove_all(hub_.cache() / "kernels--acme--relu/trees");
  EXPECT_EQ(fetch("v3").variant, kCpu);
  EXPECT_EQ(fetch("").revision.commit, cold.revision.commit);
}

TEST_F(Snapshot, WithoutAVersionIsV1ElseTheHighest) {
  EXPECT_EQ(fetch("").revision.ref, "v1");
  fs::rename(hub_.options().folder / "kernels/acme/relu/refs/v1",
             hub_.options().folder / "kernels/acme/relu/refs/v2");
  add_version(4, {kCpu});
  EXPECT_EQ(fetch("").revision.ref, "v4");
  fs::remove_all(hub_.cache());
  fetch("v4");
  go_offline();
  EXPECT_EQ(fetch("").revision.ref, "v4");
}

TEST_F(Snapshot, OfAnOlderRepositoryIsChosenByASpecifier) {
  for (const char* tag : {"v0.1.0", "v0.1.4", "v0.2.0"}) {
    const auto folder = fmt::format("models/acme/old/tags/{}/build/{}/", tag, kCpu);
    hub_.put(folder + "metadata.json", metadata(0) + tag);
    hub_.put(folder + "_relu.abi3.so", tag);
  }
  hub_.put("models/acme/old/refs/main/README.md", "");
  const auto chosen = fetch(">=0.1,<0.2", "acme/old");
  EXPECT_EQ(chosen.revision.ref, "v0.1.4");
  EXPECT_EQ(chosen.type, RepoType::kModel);
  EXPECT_EQ(library(chosen), "v0.1.4");
  EXPECT_EQ(fetch("v0.2.0", "acme/old").revision.ref, "v0.2.0");
  hub_.asked();
  fetch(">=0.1,<0.2", "acme/old");
  EXPECT_THAT(hub_.asked(), ElementsAre("GET /api/models/acme/old/refs"));
  EXPECT_THROW(fetch(">=0.3", "acme/old"), NotFound);
  go_offline();
  EXPECT_EQ(library(fetch(">=0.1,<0.2", "acme/old")), "v0.1.4");
  EXPECT_EQ(library(fetch(">=0.1", "acme/old")), "v0.2.0");
  EXPECT_THROW(fetch(">=0.3", "acme/old"), NotFound);
}

TEST_F(Snapshot, OfWhatIsNotPermittedAsksForNoFile) {
  hub_.put("kernels/stranger/relu/build/torch-cpu/metadata.json", metadata(1));
  EXPECT_THROW(fetch("v1", "stranger/relu"), IntegrityError);
  EXPECT_THAT(hub_.asked(), ElementsAre("GET /api/kernels/stranger/relu/refs",
                                        "GET /api/organizations/stranger/overview"));
  EXPECT_FALSE(fs::exists(hub_.cache() / "kernels--stranger--relu/snapshots"));
}

TEST_F(Snapshot, PassesOnToTheNextVariantWhenTheCallerRefusesTheFirst) {
  options_.accept = [](const fs::path& folder) {
    EXPECT_TRUE(fs::exists(folder / "metadata.json"));
    return folder.filename() != kCpu;
  };
  const auto found = fetch("v1");
  EXPECT_EQ(found.variant, kCuda);
  EXPECT_FALSE(fs::exists(found.build / kCpu / "_relu.abi3.so"));
  options_.accept = [](const fs::path&) { return false; };
  EXPECT_EQ(fetch("v1").variant, "");
}

TEST_F(Snapshot, OfADryRunSaysTheBytesAndWritesNothing) {
  options_.dry_run = true;
  fs::path seen;
  options_.accept = [&](const fs::path& folder) {
    seen = folder;
    return fs::exists(folder / "metadata.json") && folder.filename() == kCpu;
  };
  const auto planned = fetch("v1");
  EXPECT_EQ(planned.variant, kCpu);
  EXPECT_THAT(planned.files, SizeIs(2));
  EXPECT_FALSE(fs::exists(hub_.cache()));
  EXPECT_FALSE(fs::exists(seen));
  options_.dry_run = false;
  EXPECT_EQ(fetch("v1").bytes_fetched, planned.bytes_fetched);
  options_.dry_run = true;
  EXPECT_EQ(fetch("v1").bytes_fetched, 0U);
}

TEST_F(Snapshot, ThatIsDamagedIsFetchedAnewAndRefusedOffline) {
  const auto cold = fetch("v1");
  const auto damage = [&] {
    std::ofstream(fs::canonical(cold.build / kCpu / "_relu.abi3.so")) << "other";
  };
  damage();
  EXPECT_EQ(library(fetch("v1")), fmt::format("library 1 {} ", kCpu));
  damage();
  go_offline();
  try {
    fetch("v1");
    ADD_FAILURE() << "expected an error";
  } catch (const IntegrityError& error) {
    EXPECT_EQ(error.code(), "hub.cache.damaged");
    EXPECT_THAT(error.what(), HasSubstr("_relu.abi3.so"));
  }
}

TEST_F(Snapshot, ComesFromTheCacheWhenTheHubDoesNotAnswer) {
  const auto cold = fetch("v1");
  hub_.faults(R"([{"path": "*", "status": 503}])");
  const Client impatient({.endpoint = {}, .token = {}, .answers_stay = {}, .max_tries = 1});
  const auto found = snapshot_kernel(impatient, {kRepo, "v1"}, options_);
  EXPECT_TRUE(found.from_cache);
  EXPECT_EQ(found.revision.commit, cold.revision.commit);
  EXPECT_THROW(snapshot_kernel(impatient, {"acme/other", "v1"}, options_), NetworkError);
}

TEST_F(Snapshot, OfAnUnknownVersionOrRepositoryNamesWhatThereIs) {
  const auto text_of = [&](const std::string& ref, const std::string& repo) -> std::string {
    try {
      fetch(ref, repo);
    } catch (const NotFound& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(text_of("v7", kRepo), AllOf(HasSubstr("expected version 7, got the versions 1"),
                                          HasSubstr("acme/relu@v1")));
  EXPECT_THAT(text_of("v1", "acme/none"), HasSubstr("RepoNotFound"));
  EXPECT_THROW(fetch("v1", "../../etc"), InvalidArgument);
  EXPECT_THROW(fetch("../../etc", kRepo), InvalidArgument);
}

template <typename Call>
std::string code_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return "no error";
}

TEST_F(Snapshot, OfARepositoryThatMovedIsFollowedOnceAndJudgedAnew) {
  const auto redirect = [&](const std::string& from, const std::string& to) {
    hub_.put("kernels/" + from + "/refs/main/kernel-status.toml",
             fmt::format("kind = \"redirect\"  # moved\ndestination = \"{}\"\n", to));
  };
  redirect("acme/old-relu", kRepo);
  redirect("acme/chain", "acme/old-relu");
  redirect("acme/self", "acme/self");
  redirect("acme/ping", "acme/pong");
  redirect("acme/pong", "acme/ping");
  redirect("acme/astray", "stranger/relu");
  hub_.put(fmt::format("kernels/stranger/relu/refs/v1/build/{}/metadata.json", kCpu), metadata(1));
  const auto found = fetch("v1", "acme/old-relu");
  EXPECT_EQ(found.repo_id, kRepo);
  EXPECT_EQ(library(found), fmt::format("library 1 {} ", kCpu));
  EXPECT_EQ(permits_, 2);  // about both
  EXPECT_EQ(code_of([&] { fetch("v1", "acme/chain"); }), "hub.redirect.hops");
  EXPECT_EQ(code_of([&] { fetch("v1", "acme/self"); }), "hub.redirect.loop");
  EXPECT_EQ(code_of([&] { fetch("v1", "acme/ping"); }), "hub.redirect.hops");
  EXPECT_EQ(code_of([&] { fetch("v1", "acme/astray"); }), "test.publisher");
  EXPECT_EQ(code_of([&] { fetch("v9"); }), "hub.revision.version");  // nothing says it moved
  go_offline();
  EXPECT_EQ(fetch("v1", "acme/old-relu").repo_id, kRepo);
}

TEST_F(Snapshot, OfAMovingNameAsksWhetherItMayBeFollowedBeforeAnythingElse) {
  const auto first = fetch("v1").revision.commit;
  std::vector<std::string> asked;
  options_.follow = [&](const KernelFetch& fetch) {
    asked.push_back(fetch.revision.ref + " " + fetch.revision.commit);
    if (fetch.revision.commit != first) {
      throw IntegrityError("test", "follow", fetch.repo_id);
    }
  };
  EXPECT_EQ(fetch("v1").revision.commit, first);
  EXPECT_EQ(fetch(first).revision.commit, first);  // by its name it is what was asked for
  EXPECT_THAT(asked, ElementsAre("v1 " + first));
  add_version(1, {kCpu, kCuda}, "second");
  const int permits = permits_;
  EXPECT_EQ(code_of([&] { fetch("v1"); }), "test.follow");
  EXPECT_EQ(permits_, permits);
  EXPECT_EQ(find_kernel({kRepo, "v1"}, options_)->revision.commit, first);
}

TEST(Redirect, IsReadStrictlyWithLines) {
  const auto parse = [](const std::string& text) {
    return code_of([&] { parse_redirect(text, "kernel-status.toml"); });
  };
  const auto full =
      parse_redirect("# moved\nkind = \"redirect\"\ndestination=\"a/b\"\nrevision = \"v2\"\n", "f");
  EXPECT_EQ(full.destination, "a/b");
  EXPECT_EQ(full.revision, "v2");
  EXPECT_EQ(parse(""), "hub.redirect.kind");
  EXPECT_EQ(parse("kind = \"gone\"\n"), "hub.redirect.kind");
  EXPECT_EQ(parse("kind = \"redirect\"\n"), "hub.redirect.destination");
  EXPECT_EQ(parse("kind = \"redirect\"\ndestination = \"../b\"\n"), "hub.redirect.destination");
  EXPECT_EQ(parse("kind = \"redirect\"\ndestination = \"a/b\"\nrevision = \"../x\""),
            "hub.redirect.revision");
  EXPECT_EQ(parse("kind = \"redirect\"\nkind = \"redirect\"\n"), "hub.redirect.grammar");
  EXPECT_EQ(parse("kind = redirect\n"), "hub.redirect.grammar");
  EXPECT_EQ(parse("[table]\n"), "hub.redirect.grammar");
  EXPECT_EQ(parse(std::string(5000, '#')), "hub.redirect.grammar");
}

}  // namespace
}  // namespace graft::hub
