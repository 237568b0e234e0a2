#include "cli/command.h"

namespace graft::cli {

void add_common_options(CLI::App& command, CommonOptions& options) {
  command.add_flag("--json", options.json, "Print one JSON object on stdout, errors too");
  command.add_flag("-q,--quiet", options.quiet, "Only errors on stderr");
  command.add_flag("-v,--verbose", options.verbosity, "More on stderr; twice for still more");
}

void add_model_options(CLI::App& command, ModelOptions& options) {
  command.add_option("MODEL", options.model,
                     "Folder, .gguf file or Hub id (default: the demo model)");
  command.add_option("--gguf-file", options.gguf_file, "A .gguf file inside the folder MODEL");
  command.add_option("--revision", options.revision, "Branch, tag or commit of a Hub id");
  command
      .add_option("--device", options.device,
                  "cpu, cuda, cuda:N, auto, or a JSON map of module to device")
      ->capture_default_str();
  command.add_option("--dtype", options.dtype, "auto, float32, bfloat16 or float16")
      ->capture_default_str();
  command
      .add_option("--weights", options.weights,
                  "Of a .gguf file: packed (stay in its blocks), unpacked, or auto (packed on the "
                  "CPU with kernels, unless --dtype is given)")
      ->check(CLI::IsMember({"auto", "packed", "unpacked"}))
      ->capture_default_str();
  command
      .add_option("--attn-implementation", options.attn_implementation,
                  "sdpa, eager, graft, flash_attention_2, flash_attention_3 or org/repo[@ref]")
      ->capture_default_str();
  command
      .add_option_function<std::string>(
          "--kernels",
          [&options](const std::string& value) { options.use_kernels = value == "on"; },
          "on or off (default: on)")
      ->check(CLI::IsMember({"on", "off"}));
  command.add_option("--kernel-config", options.kernel_config,
                     "Kernel mapping as JSON, or a file that holds it");
}

}  // namespace graft::cli
