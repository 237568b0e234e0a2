// A program outside this repository: found through find_package, a model loaded, a few tokens
// written.
#include <iostream>

#include <graft/graft.h>

int main(int, char** argv) {
  auto model = graft::AutoModelForCausalLM::from_pretrained(argv[1], {.use_kernels = true});
  auto tokenizer = graft::AutoTokenizer::from_pretrained(argv[1]);
  const auto prompt = tokenizer.encode("The capital of France is");
  const auto output =
      graft::generate(*model, {{prompt.begin(), prompt.end()}}, {.max_new_tokens = 4});
  const std::vector<int32_t> ids(output.sequences[0].begin(), output.sequences[0].end());
  const auto report = graft::layers::kernelize_report(*model);
  std::cout << tokenizer.decode(ids) << "\n" << report->swapped().size() << " rows swapped\n";
  return ids.size() == 4 && !report->swapped().empty() ? 0 : 1;
}
