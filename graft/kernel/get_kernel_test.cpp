// Kernels from a Hub of our own: the packages of tests/kernels, found, fetched, locked and loaded.

#include "graft/kernel/get_kernel.h"

#include <fstream>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/hub/disk.h"
#include "graft/hub/environment.h"
#include "graft/hub/server/test_hub.h"
#include "graft/kernel/hub_source.h"
#include "graft/kernel/locked_kernel.h"

namespace graft::kernel {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr char kVariant[] = "torch-stable-abi211-cpu-x86_64-linux";

template <typename Call>
std::string code_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return "no error";
}

class Kernels : public testing::Test {
 protected:
  Kernels() : hub_("get-kernel") {
    hub_.set("GRAFT_EMBEDDED_HUB", (hub_.base() / "embedded").string());
    hub_.set("LOCAL_KERNELS", "");
    hub_.set("XDG_CONFIG_HOME", (hub_.base() / "config").string());
    hub_.set("GRAFT_TRUST_JOURNAL", (hub_.base() / "trust.jsonl").string());
  }

  // A package of the build's own under a name on the Hub.
  void serve(const std::string& package, const std::string& place) {
    const fs::path from = fs::path(GRAFT_BINARY_DIR) / "tests/hub/graft-tests" / package / "build";
    const fs::path to = hub_.options().folder / place / "build";
    fs::create_directories(to);
    fs::copy(from, to, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  }

  static std::string metadata(const std::string& name, int version, const std::string& more = "",
                              const std::string& backend = R"({"type": "cpu"})") {
    return fmt::format(R"({{"name": "{0}", "id": "_{0}_{1}", "version": {1}, "license": "mit",
                           "python-depends": [], "backend": {2}{3}}})",
                       name, version, backend, more);
  }

  void put_metadata(const std::string& name, int version, const std::string& more = "") {
    hub_.put(
        fmt::format("kernels/acme/{}/refs/v{}/build/{}/metadata.json", name, version, kVariant),
        metadata(name, version, more));
  }

  ResolveRequest request(const std::string& text) {
    hub_.start();
    return {parse_layer_reference(text), this_system("cpu", 0)};
  }

  hub::server::TestHub hub_;
};

TEST_F(Kernels, AreFetchedVerifiedAndLoadedByVersion) {
  serve("from-hub", "kernels/acme/from-hub/refs/v1");
  hub_.start();
  EXPECT_TRUE(has_kernel("acme/from-hub", {.version = 1}));
  EXPECT_FALSE(fs::exists(hub_.cache()));
  const auto kernel = get_kernel("acme/from-hub", {.version = 1});
  EXPECT_THAT(kernel->op_names(), ElementsAre("copy"));
  EXPECT_EQ(kernel->source, "Hub");
  EXPECT_GT(kernel->bytes_fetched, 1000U);
  EXPECT_THAT(kernel->commit, SizeIs(40));
  EXPECT_EQ(get_kernel("acme/from-hub", {.version = 1}), kernel);
  hub_.stop();
  hub_.set("HF_HUB_OFFLINE", "1");
  EXPECT_EQ(get_kernel("acme/from-hub", {.version = 1}), kernel);
  EXPECT_EQ(get_kernel("acme/from-hub", {.revision = kernel->commit}), kernel);
  EXPECT_EQ(install_kernel("acme/from-hub", {.version = 1}), kernel->folder);
}

TEST_F(Kernels, OfABranchThatGoesBackAreRefusedUntilThatIsAllowed) {
  const auto stands = [&](const std::string& salt) {
    fs::remove_all(hub::private_folder() / "answers");  // they stay good for a minute
    put_metadata("moving", 1);
    hub_.put(fmt::format("kernels/acme/moving/refs/v1/build/{}/moving.abi3.so", kVariant), salt);
  };
  ResolveRequest v1 = request("acme/moving@v1:L");
  const auto commit = [&] { return resolve(v1).commit; };
  stands("first");
  const auto first = commit();
  stands("second");
  const auto second = commit();
  EXPECT_NE(first, second);
  fs::remove_all(hub_.cache());  // clearing the cache forgets nothing
  stands("first");
  EXPECT_EQ(code_of(commit), "hub.revision.rollback");
  EXPECT_FALSE(fs::exists(hub_.cache() / "kernels--acme--moving/blobs"));
  EXPECT_EQ(resolve(request("acme/moving@" + first + ":L")).commit, first);  // it was named
  EXPECT_EQ(code_of(commit), "hub.revision.rollback");
  hub_.set("GRAFT_TRUST_ALLOW", "acme/moving@" + first);  // the policy names it
  EXPECT_EQ(commit(), first);
  hub_.set("GRAFT_TRUST_ALLOW", "");
  EXPECT_EQ(code_of(commit), "hub.revision.rollback");
  v1.allow_rollback = v1.dry_run = true;
  EXPECT_EQ(commit(), first);
  v1.allow_rollback = v1.dry_run = false;
  EXPECT_EQ(code_of(commit), "hub.revision.rollback");  // a dry run leaves no trace
  v1.allow_rollback = true;
  EXPECT_EQ(commit(), first);
  v1.allow_rollback = false;
  EXPECT_EQ(commit(), first);
  stands("second");
  EXPECT_EQ(code_of(commit), "hub.revision.rollback");
  stands("third");
  EXPECT_EQ(code_of(commit), "no error");
}

TEST_F(Kernels, NeedExactlyOneOfVersionAndRevision) {
  EXPECT_EQ(code_of([] { get_kernel("acme/relu", {}); }), "kernel.get.version");
  EXPECT_EQ(code_of([] { get_kernel("acme/relu", {.version = 1, .revision = "main"}); }),
            "kernel.get.version");
  EXPECT_EQ(code_of([] { get_kernel("acme/relu", {.version = -1}); }), "kernel.get.version");
  EXPECT_EQ(code_of([] { get_kernel("/nowhere", {.version = 1}); }), "kernel.get.version");
}

TEST_F(Kernels, AreNotThereWithoutAFittingVariantAndAnErrorWithoutARepository) {
  put_metadata("plain", 1);
  hub_.put("kernels/acme/none/refs/v1/build/torch-stable-abi299-cpu-x86_64-linux/metadata.json",
           metadata("none", 1));
  hub_.put("kernels/stranger/relu/refs/v1/build/torch-stable-abi211-cpu-x86_64-linux/metadata.json",
           metadata("relu", 1));
  hub_.start();
  EXPECT_TRUE(has_kernel("acme/plain", {.version = 1}));
  EXPECT_FALSE(has_kernel("acme/none", {.version = 1}));
  EXPECT_EQ(code_of([] { has_kernel("acme/plain", {.version = 2}); }),
            "kernel.resolver.missing-package");
  EXPECT_EQ(code_of([] { has_kernel("acme/nobody", {.version = 1}); }),
            "kernel.resolver.missing-package");
  EXPECT_EQ(code_of([] { has_kernel("stranger/relu", {.version = 1}); }),
            "trust.decision.unknown-publisher");
  EXPECT_TRUE(has_kernel("stranger/relu", {.version = 1, .trust = {.trust_all = true}}));
  EXPECT_TRUE(
      has_kernel("stranger/relu", {.version = 1, .trust = {.repositories = {"stranger/relu"}}}));
  EXPECT_EQ(code_of([] {
              has_kernel("stranger/relu", {.version = 1, .trust = {.repositories = {"acme/relu"}}});
            }),
            "trust.decision.unknown-publisher");
}

TEST_F(Kernels, HaveTheirVariantsListedBestFirstWithReasons) {
  for (const char* name : {"torch-stable-abi29-cpu-x86_64-linux", kVariant, "torch-cuda",
                           "torch-stable-abi211-cu130-x86_64-linux"}) {
    hub_.put(fmt::format("kernels/acme/many/refs/v2/build/{}/metadata.json", name),
             metadata("many", 2));
  }
  hub_.start();
  const auto decisions = get_kernel_variants("acme/many", {.version = 2});
  ASSERT_THAT(decisions, SizeIs(4));
  EXPECT_EQ(decisions[0].variant, kVariant);
  EXPECT_TRUE(decisions[0].is_accepted);
  EXPECT_EQ(decisions[1].variant, "torch-stable-abi29-cpu-x86_64-linux");
  EXPECT_TRUE(decisions[1].is_accepted);
  EXPECT_FALSE(decisions[2].is_accepted);
  EXPECT_THAT(decisions[2].reason + decisions[3].reason,
              AllOf(HasSubstr("Python files only"), HasSubstr("built for cuda")));
  EXPECT_FALSE(fs::exists(hub_.cache()));
}

TEST_F(Kernels, AreFoundByEveryFormOfAReference) {
  put_metadata("norms", 1);
  put_metadata("norms", 2);
  const auto version_of = [&](const std::string& text) {
    return resolve(request(text)).metadata.version;
  };
  EXPECT_EQ(version_of("acme/norms:L"), 1);
  EXPECT_EQ(version_of("acme/norms@v2:L"), 2);
  for (const char* tag : {"v0.1.0", "v0.1.3", "v0.2.0"}) {
    hub_.put(fmt::format("models/acme/old/tags/{}/build/{}/metadata.json", tag, kVariant),
             metadata("old", 0, fmt::format(R"(, "upstream": "{}")", tag)));
  }
  hub_.put("models/acme/old/refs/main/README.md", "");
  EXPECT_EQ(resolve(request("acme/old@>=0.1,<0.2:L")).metadata.upstream, "v0.1.3");
  EXPECT_EQ(resolve(request("acme/old@v0.1.0:L")).metadata.upstream, "v0.1.0");
  hub_.stop();
  hub_.set("HF_HUB_OFFLINE", "1");
  EXPECT_EQ(resolve(request("acme/old@>=0.1,<0.2:L")).source, "cache");
  EXPECT_EQ(version_of("acme/norms@v2:L"), 2);
}

TEST_F(Kernels, OfALaterPlaceServeWhereAnEarlierOneHasNoFittingVariant) {
  put_metadata("norms", 2);
  const fs::path embedded = hub_.base() / "embedded/acme/norms/build" / kVariant;
  fs::create_directories(embedded);
  std::ofstream(embedded / "metadata.json") << metadata("norms", 1);
  EXPECT_EQ(resolve(request("acme/norms:L")).source, "embedded hub");
  EXPECT_EQ(resolve(request("acme/norms@v1:L")).source, "embedded hub");
  EXPECT_THAT(hub_.asked(), IsEmpty());
  const auto found = resolve(request("acme/norms@v2:L"));
  EXPECT_EQ(found.source, "Hub");
  ASSERT_THAT(found.refused, SizeIs(1));
  EXPECT_THAT(found.refused[0].second, HasSubstr("this is version 1, v2 was asked for"));
  // A folder that a person names settles the question.
  hub_.set("LOCAL_KERNELS", "acme/norms=" + (hub_.base() / "embedded/acme/norms").string());
  EXPECT_EQ(resolve(request("acme/norms@v2:L")).source, "LOCAL_KERNELS");
}

TEST_F(Kernels, BringTheirDependenciesOnceAndRefuseCycles) {
  const auto depends = [](const std::string& name, int version) {
    return fmt::format(R"(, "kernel-depends": [{{"repo-id": "acme/{}", "version": {}}}])", name,
                       version);
  };
  put_metadata("top", 1, R"(, "kernel-depends": [{"repo-id": "acme/left", "version": 1},
                                                  {"repo-id": "acme/base", "version": 1}])");
  put_metadata("left", 1, depends("base", 1));
  put_metadata("base", 1);
  const auto tree = resolve_tree(request("acme/top@v1:L"));
  ASSERT_THAT(tree, SizeIs(3));
  EXPECT_EQ(tree[0].reference.repository, "acme/base");
  EXPECT_EQ(tree[1].reference.repository, "acme/left");
  EXPECT_EQ(tree[2].reference.repository, "acme/top");
  EXPECT_THAT(tree[2].dependencies, ElementsAre(1U, 0U));
  put_metadata("ping", 1, depends("pong", 1));
  put_metadata("pong", 1, depends("ping", 1));
  EXPECT_EQ(code_of([&] { resolve_tree(request("acme/ping@v1:L")); }),
            "kernel.resolver.dependency-cycle");
  for (int i = 0; i < 12; ++i) {
    put_metadata(fmt::format("deep{}", i), 1, depends(fmt::format("deep{}", i + 1), 1));
  }
  EXPECT_EQ(code_of([&] { resolve_tree(request("acme/deep0@v1:L")); }),
            "kernel.resolver.dependency-depth");
  put_metadata("strange", 1, R"(, "kernel-depends": [{"repo-id": "stranger/relu", "version": 1}])");
  hub_.put(fmt::format("kernels/stranger/relu/refs/v1/build/{}/metadata.json", kVariant),
           metadata("relu", 1));
  EXPECT_EQ(code_of([&] { resolve_tree(request("acme/strange@v1:L")); }),
            "trust.decision.unknown-publisher");
}

TEST_F(Kernels, AreLockedWithTheirDependenciesAndHeldAgainstTheLock) {
  put_metadata("top", 1, R"(, "kernel-depends": [{"repo-id": "acme/base", "version": 2}])");
  put_metadata("base", 2);
  hub_.start();
  const LockFile lock = make_lock(hub::Client(), {{"acme/top", 1, ""}}, {});
  ASSERT_THAT(lock.entries, SizeIs(2));
  const fs::path file = hub_.base() / "kernels.lock";
  hub::write_atomically(file, lock_text(lock));
  hub::write_atomically(hashes_path(file), hashes_text(lock));
  // The branches move on; the lock does not.
  put_metadata("base", 2, R"(, "upstream": "moved")");
  const auto tree = resolve_locked("acme/top", read_lock_file(file), {});
  ASSERT_THAT(tree, SizeIs(2));
  EXPECT_EQ(tree[0].resolution.metadata.upstream, "");
  EXPECT_EQ(code_of([&] { resolve_locked("acme/base", read_lock_file(file), {}); }), "no error");
  EXPECT_EQ(code_of([&] { resolve_locked("acme/other", read_lock_file(file), {}); }),
            "kernel.lock.not-locked");
  LockFile changed = read_lock_file(file);
  changed.entries[0].hashes[kVariant] = std::string(64, '0');
  EXPECT_EQ(code_of([&] { resolve_locked("acme/top", changed, {}); }), "kernel.lock.content");
  changed.entries[0].hashes = {{"torch-cuda", std::string(64, '0')}};
  EXPECT_EQ(code_of([&] { resolve_locked("acme/top", changed, {}); }), "kernel.lock.variant");
  hub_.stop();
  hub_.set("HF_HUB_OFFLINE", "1");
  EXPECT_EQ(code_of([&] { resolve_locked("acme/top", read_lock_file(file), {}); }), "no error");
}

TEST_F(Kernels, OfALockLoadWithoutARequest) {
  serve("locked", "kernels/acme/locked/refs/v1");
  hub_.start();
  const fs::path file = hub_.base() / "kernels.lock";
  hub::write_atomically(file, lock_text(make_lock(hub::Client(), {{"acme/locked", 1, ""}}, {})));
  EXPECT_EQ(code_of([&] { load_kernel("acme/locked", file); }),
            "kernel.resolver.missing-package");  // locked, not fetched
  const auto kernel = get_locked_kernel("acme/locked", file);
  hub_.asked();
  EXPECT_EQ(load_kernel("acme/locked", file), kernel);
  EXPECT_THAT(hub_.asked(), IsEmpty());
}

TEST_F(Kernels, OfAProjectAreReadFromItsTable) {
  const fs::path file = hub_.base() / "pyproject.toml";
  const auto read = [&](const std::string& text) {
    std::ofstream(file) << text;
    return read_pyproject(file);
  };
  const auto kernels = read(
      "[project]\nname = \"x\"\n[tool.kernels.dependencies]\n# ours\n\"acme/relu\" = 1\n"
      "\"acme/norms\" = 12 # newest\n[tool.other]\n\"a/b\" = \"c\"\n");
  ASSERT_THAT(kernels, SizeIs(2));
  EXPECT_EQ(kernels[1].repo_id, "acme/norms");
  EXPECT_EQ(kernels[1].version, 12);
  for (const char* wrong :
       {"\"acme/relu\" = \">=1\"", "acme = 1", "\"acme\" = 1", "\"a/b\" = -1", ""}) {
    EXPECT_EQ(code_of([&] { read(fmt::format("[tool.kernels.dependencies]\n{}\n", wrong)); }),
              "kernel.lock.pyproject")
        << wrong;
  }
}

}  // namespace
}  // namespace graft::kernel
