#include <iostream>

#include "graft/graft.h"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: example_quick_start MODEL [PROMPT]\n";
    return 2;
  }
  auto model = graft::AutoModelForCausalLM::from_pretrained(argv[1], {.use_kernels = true});
  auto tokenizer = graft::AutoTokenizer::from_pretrained(argv[1]);

  auto prompt = tokenizer.encode(argc > 2 ? argv[2] : "The capital of France is");
  auto output = graft::generate(*model, {{prompt.begin(), prompt.end()}}, {.max_new_tokens = 16});

  std::vector<int32_t> ids(output.sequences[0].begin(), output.sequences[0].end());
  std::cout << tokenizer.decode(ids) << "\n";
}
