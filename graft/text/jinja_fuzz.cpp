// Fuzz target of the template language: any bytes as a template, rendered under small budgets.
#include <cstddef>
#include <cstdint>
#include <string>

#include "graft/core/error.h"
#include "graft/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto kMessages = nlohmann::ordered_json::parse(
      R"([{"role": "system", "content": "s"}, {"role": "user", "content": "größe\n 2"},
          {"role": "assistant", "content": null, "tool_calls": [{"id": "abc", "function":
           {"name": "f", "arguments": {"x": 1, "y": [1.5, true]}}}]}])");
  graft::text::ChatTemplateOptions options;
  options.add_generation_prompt = true;
  options.tools = kMessages[2]["tool_calls"];
  options.bos_token = "<s>";
  options.variables = {{"l", {3, 1, 2}}, {"d", {{"a", 1}, {"b", "x"}}}, {"s", "Hello"}};
  options.now = std::tm{};
  options.now->tm_mday = 1;
  options.max_steps = 20'000;
  options.max_output_bytes = 1 << 20;
  options.max_work_bytes = 8 << 20;
  try {
    const std::string source(reinterpret_cast<const char*>(data), size);
    graft::text::ChatTemplate::parse(source).render(kMessages, options);
  } catch (const graft::Error&) {
    // every refusal is a typed error; anything else ends the process
  }
  return 0;
}
