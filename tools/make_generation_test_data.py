#!/usr/bin/env python3
"""Writes tests/data/generation: what transformers' logits processors and generate() give.

The model is a chain of tables over a vocabulary of 40: the logits of the next token depend on the
last token, on the sum of all tokens before and on the position, so that a wrong row of the cache, a
wrong mask or a wrong position id changes the result. The C++ tests hold the same model.

    python tools/make_generation_test_data.py
"""

import json
import pathlib
import warnings

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation import logits_process
from transformers.modeling_outputs import CausalLMOutputWithPast

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "generation"
VOCAB, PAD, BOS, EOS = 40, 1, 2, 3
# One text per id; `é` and `€` come in pieces of their UTF-8 bytes.
PIECES = [bytes([c]) for c in b"?#^$abcdefghijklmnop"] + [
    b" the", b" stop", b"sto", b"p.", b"top", b"STOP", b"\n", b"\n\n", b" ", b"ab", b"cd", b"END",
    b"EN", b"D!", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"x\xc3", b".",
]  # fmt: skip
assert len(PIECES) == VOCAB


class TableConfig(PretrainedConfig):
    model_type = "graft_table"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size = VOCAB
        self.num_hidden_layers = 1


class TableModel(PreTrainedModel, GenerationMixin):
    config_class = TableConfig

    def __init__(self, config):
        super().__init__(config)
        generator = torch.Generator().manual_seed(20)
        tables = torch.randn(3, VOCAB, VOCAB, generator=generator) * torch.tensor([1.6, 1.2, 0.7]).view(3, 1, 1)
        tables[0, :, PAD] = -30.0
        tables[0, :, EOS] += 1.0
        for first, second in ((34, 35), (38, 35), (36, 37)):  # bytes of one character
            tables[0, first, second] += 8.0
        tables[0, :, 34] += 1.0
        tables[0, :, 36] += 1.0
        self.tables = torch.nn.Parameter(tables, requires_grad=False)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, attention_mask=None, **kwargs):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        position = (mask.sum(-1) - 1) % VOCAB
        total = (input_ids * mask).sum(-1) % VOCAB
        last, history, place = self.tables
        logits = last[input_ids[:, -1]] + history[total] + place[position]
        return CausalLMOutputWithPast(logits=logits[:, None])


def byte_level_tokenizer():
    chars = transformers.convert_slow_tokenizer.bytes_to_unicode()
    vocab = {"".join(chars[b] for b in piece): i for i, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="?"))
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="#", eos_token="$")


SHORT, LONG, OTHER = [4, 9, 17], [5, 6, 7, 8, 9, 10, 11, 30], [12]
BATCH = [SHORT, LONG, OTHER]


def cases():
    """Name, prompts, options: every decoding feature alone, and the combinations that interact."""
    yield "greedy", [SHORT], {"max_new_tokens": 24}
    yield "greedy padded batch", BATCH, {"max_new_tokens": 24}
    yield "greedy without cache", BATCH, {"max_new_tokens": 24}
    yield "greedy without eos", [SHORT], {"max_new_tokens": 40, "eos_token_id": None}
    yield "several eos", BATCH, {"max_new_tokens": 24, "eos_token_id": [EOS, 12, 25]}
    yield "min new tokens", BATCH, {"max_new_tokens": 24, "min_new_tokens": 15, "eos_token_id": [EOS, 12]}
    yield "min length", BATCH, {"max_new_tokens": 24, "min_length": 18, "eos_token_id": [EOS, 12]}
    yield "max length", BATCH, {"max_length": 17}
    yield "default length", [OTHER], {"eos_token_id": None}
    for penalty in (1.3, 0.8):
        # Of rows without padding: transformers would count the padding as seen.
        yield f"repetition penalty {penalty}", [LONG], {"max_new_tokens": 30, "repetition_penalty": penalty}
    for size in (1, 2, 3):
        yield f"no repeat {size}-gram", [LONG], {"max_new_tokens": 20, "no_repeat_ngram_size": size, "eos_token_id": None}
    yield "all processors", [LONG], {
        "max_new_tokens": 24, "min_new_tokens": 10, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2}  # fmt: skip
    for stop in (["STOPEN"], ["NST"], [" the"], ["p."], ["\u00e9"], ["\u20ac"], ["op"], ["\n"], ["D!", "lc"],
                 ["\u00e9p."], ["nope"]):  # fmt: skip
        yield f"stop strings {stop}", BATCH, {"max_new_tokens": 60, "stop_strings": stop, "eos_token_id": None}
    # The prompts end in `asto` and `a stop`.
    yield "stop string begins in the prompt", [[4, 22], [4, 21]], {
        "max_new_tokens": 30, "stop_strings": ["sto\u00e9", "stox\u00e9", "sto\u20ac", "stop."], "eos_token_id": None}
    # Draws differ from torch's; the distribution that is drawn from does not.
    for name, options in {
        "default": {},
        "top-p": {"top_k": 0, "top_p": 0.8, "temperature": 1.7},
        "all warpers": {
            "temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95, "repetition_penalty": 1.1},
    }.items():  # fmt: skip
        yield f"sample {name}", [LONG], {"max_new_tokens": 2, "do_sample": True, **options}
    for beams in (2, 3, 5):
        yield f"beams {beams}", [SHORT], {"max_new_tokens": 20, "num_beams": beams}
        yield f"beams {beams} padded batch", BATCH, {"max_new_tokens": 20, "num_beams": beams}
    for stopping in (True, False, "never"):
        for penalty in (-1.0, 0.0, 0.7, 1.0, 2.0):
            yield f"beams early stopping {stopping} length penalty {penalty}", BATCH, {
                "max_new_tokens": 16, "num_beams": 4, "early_stopping": stopping, "length_penalty": penalty,
                "num_return_sequences": 4}  # fmt: skip
    for stopping in (True, False, "never"):
        yield f"beams several eos {stopping}", BATCH, {
            "max_new_tokens": 20, "num_beams": 3, "eos_token_id": [EOS, 12, 25, 33], "num_return_sequences": 2,
            "early_stopping": stopping}  # fmt: skip
    yield "beams without eos", BATCH, {"max_new_tokens": 12, "num_beams": 3, "eos_token_id": None, "num_return_sequences": 3}
    yield "beams min new tokens", BATCH, {"max_new_tokens": 14, "num_beams": 3, "min_new_tokens": 9}
    yield "beams one token", BATCH, {"max_new_tokens": 1, "num_beams": 3, "num_return_sequences": 3}
    yield "beams processors", [LONG], {
        "max_new_tokens": 20, "num_beams": 4, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2,
        "num_return_sequences": 2}  # fmt: skip
    yield "beams stop strings", BATCH, {"max_new_tokens": 25, "num_beams": 3, "stop_strings": ["p.", "\u00e9", "NEN"], "num_return_sequences": 3}
    yield "beams max length", BATCH, {"max_length": 15, "num_beams": 3}
    for seed in (0, 1):
        yield f"beam sample {seed}", [LONG], {
            "max_new_tokens": 20, "num_beams": 3, "do_sample": True, "seed": seed, "temperature": 1.5,
            "top_k": 3, "top_p": 0.8, "num_return_sequences": 2}  # fmt: skip
    yield "beam sample cut to the eos ids", [LONG], {
        "max_new_tokens": 20, "num_beams": 2, "do_sample": True, "seed": 7, "top_k": 1, "min_p": 0.9, "typical_p": 0.1,
        "eos_token_id": [EOS, 12, 25]}  # fmt: skip


def run_case(model, tokenizer, prompts, options):
    options = dict({"eos_token_id": EOS}, **options)
    if "stop_strings" in options and "num_beams" not in options and len(prompts) > 1:
        # Without end tokens transformers writes on behind a row's end until all rows have ended.
        rows = [run_case(model, tokenizer, [prompt], options) for prompt in prompts]
        return {"sequences": [row["sequences"][0] for row in rows]}
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(options.pop("seed", 0))
    model.generation_config = GenerationConfig()
    config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, use_cache=False, return_dict_in_generate=True, output_scores=True, **options)  # fmt: skip
    if "stop_strings" in options:
        output = model.generate(ids, attention_mask=mask, generation_config=config, tokenizer=tokenizer)
    else:
        output = model.generate(ids, attention_mask=mask, generation_config=config)
    eos = options["eos_token_id"]
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    rows = []
    for row in output.sequences[:, width:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in eos), len(row))
        rows.append([token for token in row[:end] if token not in (PAD, -1)])
    result = {"sequences": rows}
    if options.get("do_sample") and options.get("num_beams", 1) == 1:
        scores = output.scores[0][0].tolist()
        result = {"first_scores": [None if score == -float("inf") else score for score in scores]}
    if options.get("num_beams", 1) > 1:
        result["beam_scores"] = output.sequences_scores.tolist()
    return result


def processor_data():
    """Each processor on logits with ties and bans, for several values of its option."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(4, 64, generator=generator) * 3
    logits[1, 10:14] = logits[1].max() + 0.5  # ties at the top
    logits[2, 20:40] = -float("inf")
    logits[3] = torch.arange(64) / 8.0
    ids = torch.randint(0, 12, (4, 20), generator=generator)
    tensors, rows = {"logits": logits, "ids": ids}, []

    def add(name, value, keep, processor):
        key = f"{name} {value} {keep}"
        tensors[key] = processor(ids, logits.clone()).contiguous()
        rows.append({"processor": name, "value": value, "min_tokens_to_keep": keep, "key": key})

    for value in (1.2, 0.5, 3.0):
        add("repetition_penalty", value, 1, logits_process.RepetitionPenaltyLogitsProcessor(value))
    for value in (1, 2, 3, 4, 30):
        add("no_repeat_ngram", value, 1, logits_process.NoRepeatNGramLogitsProcessor(value))
    for value in (0.3, 0.7, 2.5):
        add("temperature", value, 1, logits_process.TemperatureLogitsWarper(value))
    for keep in (1, 3):
        for value in (1, 3, 12, 50, 1000):
            add("top_k", value, keep, logits_process.TopKLogitsWarper(value, min_tokens_to_keep=keep))
        for value in (0.01, 0.3, 0.9, 0.999):
            add("top_p", value, keep, logits_process.TopPLogitsWarper(value, min_tokens_to_keep=keep))
        for value in (0.0, 0.05, 0.5, 1.0):
            add("min_p", value, keep, logits_process.MinPLogitsWarper(value, min_tokens_to_keep=keep))
        for value in (0.01, 0.2, 0.9, 0.99):
            add("typical_p", value, keep, logits_process.TypicalLogitsWarper(value, min_tokens_to_keep=keep))
    return tensors, rows


def main():
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    OUT.mkdir(parents=True, exist_ok=True)
    model, tokenizer = TableModel(TableConfig()).eval(), byte_level_tokenizer()
    save_file({"tables": model.tables.data}, OUT / "table_model.safetensors")
    tokenizer.backend_tokenizer.save(str(OUT / "tokenizer.json"))
    tensors, rows = processor_data()
    save_file(tensors, OUT / "processors.safetensors")
    generated = []
    for name, prompts, options in cases():
        generated.append({"name": name, "prompts": prompts, "options": options, **run_case(model, tokenizer, prompts, options)})
        if name == "greedy without cache":
            generated[-1]["options"] = dict(options, use_cache=False)
    data = {
        "transformers": transformers.__version__,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "processors": rows,
    }
    lines = [json.dumps(case) for case in generated]
    text = json.dumps(data, indent=1)[:-2] + ',\n "cases": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    (OUT / "cases.json").write_text(text)


if __name__ == "__main__":
    main()
