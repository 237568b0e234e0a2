// Everything that a program on graft needs, under short names.
#pragma once

#include "graft/core/error.h"
#include "graft/core/version.h"
#include "graft/generation/generate.h"
#include "graft/layers/kernelize.h"
#include "graft/models/auto_model.h"
#include "graft/models/auto_tokenizer.h"
#include "graft/models/save_pretrained.h"
#include "graft/text/chat_template.h"

namespace graft {

using generation::generate;
using generation::GenerationConfig;
using layers::KernelConfig;
using layers::kernelize;
using layers::unkernelize;
using models::AutoModelForCausalLM;
using models::AutoTokenizer;
using models::LoadOptions;
using models::save_pretrained;
using models::unique_parameters;

}  // namespace graft
