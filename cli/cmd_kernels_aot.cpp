// `graft kernels aot`.
#include <memory>

#include "cli/command.h"
#include "cli/torch_commands.h"

namespace graft::cli {

void add_kernels_aot(CLI::App& kernels, Chosen& chosen) {
  auto options = std::make_shared<AotOptions>();
  auto* command = kernels.add_subcommand(
      "aot",
      "Compile a layer of a Python-only kernel (Triton) once, where Python and torch are, into a "
      "package that is loaded without Python (docs/aot.md)");
  add_common_options(*command, options->common);
  command
      ->add_option("KERNEL:LAYER", options->layer,
                   "org/repo[@v1|@tag|@commit]:Layer, or /folder:Layer")
      ->required();
  command->add_option("--out", options->out, "Folder of the new package")->required();
  command->add_option("--contract", options->contract,
                      "What the layer stands for: RMSNorm or an activation (default: its name)");
  command->add_option("--device", options->device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--dtype", options->dtypes, "float32, bfloat16, float16, one or several")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}))
      ->capture_default_str();
  command->add_option("--columns", options->columns,
                      "Widths of rows (hidden sizes) to serve; without: any, where the kernel can");
  command->add_option("--eps", options->eps, "Of a norm, as the model's config has it")
      ->capture_default_str();
  command
      ->add_option("--variant", options->variant,
                   "How a norm rounds: cast_before_weight, cast_after_weight, float_weight, "
                   "zero_centered")
      ->check(CLI::IsMember(
          {"cast_before_weight", "cast_after_weight", "float_weight", "zero_centered"}))
      ->capture_default_str();
  command->add_option("--python", options->python,
                      "Python that has torch (default: GRAFT_PYTHON, else python3)");
  command->add_flag("--trust-remote-code", options->trust_remote_code,
                    "Run this package's Python code, which nothing keeps in, with your rights");
  command->add_flag("--dry-run", options->dry_run, "Say what would run; run and write nothing");
  command->callback([options, &chosen] {
    chosen = {[options] { return torch_commands().kernels_aot(*options); }, &options->common};
  });
}

}  // namespace graft::cli
