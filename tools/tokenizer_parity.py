#!/usr/bin/env python3
"""graft's tokenizers beside the `tokenizers` library.

  tokenizer_parity.py data                      rewrites tests/data/text/{tokenizer_cases.txt,<family>/}
  tokenizer_parity.py compare PROGRAM [--gguf MODEL] [--megabytes N] [--rounds N] [--out FILE]
                                                runs `PROGRAM tokenize MODEL --file F --json` on a large text; with
                                                --out one JSON line per family: seconds of the whole process (start,
                                                vocabulary, ids as JSON) beside the library's encode() alone, by turns

No vocabulary is downloaded: each family's pipeline is rebuilt and trained on the sources of the Python standard
library and on made-up text in many scripts. With --gguf the byte-level vocabulary of that file is rebuilt too.
"""
import argparse
import base64
import json
import pathlib
import random
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "tests/data/text"
GPT2_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SCRIPTS = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x531, 0x58F), (0x591, 0x5F4),
           (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE01, 0xE5B), (0xF00, 0xFDA),
           (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F), (0x1780, 0x17F9), (0x1E00, 0x1EFF), (0x2000, 0x206F),
           (0x2070, 0x20BF), (0x2100, 0x214F), (0x2190, 0x23FF), (0x2500, 0x27BF), (0x3000, 0x30FF), (0x3130, 0x318E),
           (0x3300, 0x33FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xF900, 0xFAD9), (0xFB00, 0xFB4F), (0xFE00, 0xFE4F),
           (0xFF00, 0xFFEF), (0x10300, 0x1034A), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x20100)]
EMOJI = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "👍🏽", "❤️‍🔥", "☺️", "1️⃣", "🧑🏿‍🚀"]

# Characters younger than Unicode 14, which a regular expression library may take for unassigned.
YOUNG = ["\U0001f461  \U0001faad\U0001f71a", "\U000314d5\u4eff", "a\U0001fae8 \U0001fa77\U0001faf8!", "\U00031350\U000323af\u4e00 x",
         "\u0897\u1c89\u1c8a \ua7cb\ua7cd", "\U00011f50\U00011f59 12", "\U00010d40\U00010d49\U00010d50\U00010d70"]
LONG_RUNS = ["a", " ", "0", "=", "\n", "\u4e2d", "\u0301", "\U0001f600", "\U0001faad"]


def standard_library(limit):
    texts, size = [], 0
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        texts.append(text)
        size += len(text)
        if size > limit:
            break
    return texts


def scripted_line(rng):
    low, high = rng.choice(SCRIPTS)
    words = ["".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 9))) for _ in range(rng.randint(1, 12))]
    return rng.choice([" ", "  ", "", ", ", "\u00a0", "\u3000", "\t"]).join(words)


def odd_line(rng):
    pick = rng.randrange(9)
    if pick == 0:
        return "".join(rng.choice(EMOJI) + rng.choice(["", " ", "x"]) for _ in range(rng.randint(1, 8)))
    if pick == 1:
        return "".join(chr(rng.randint(0, 0x9F)) for _ in range(rng.randint(1, 40)))
    if pick == 2:
        return rng.choice("a 0=-\u4e2d\u0301\t") * rng.choice([3, 17, 49, 130])
    if pick == 3:
        return rng.choice(["I'LL", "we're", "it'ſ", "DON'T", "'quoted'", "''s", "x'd've", "'"]) + " " + scripted_line(rng)
    if pick == 4:
        return str(rng.randint(0, 10 ** rng.randint(1, 12))) + rng.choice(["", " ", ",", "²", "½", "٣"]) + "".join(
            rng.choice("0123456789") for _ in range(rng.randint(0, 9)))
    if pick == 5:
        return rng.choice(GPT2_SPECIAL + ["<s>", "</s>", "<pad>", "[MASK]", "[CLS]"]) + rng.choice(["", " ", "  a"])
    if pick == 6:
        return "e" + "".join(chr(rng.randint(0x300, 0x36F)) for _ in range(rng.randint(1, 6))) + "ﬁ①ǅİß가각ᄀ\u1161\u11a8"
    if pick == 7:
        return " " * rng.randint(0, 6) + rng.choice(["\n", "\r\n", "\n\n  ", " \n ", "\t\n"]) + "  if x:"
    return "".join(chr(c) for c in (rng.randint(0x20, 0x10FFFF) for _ in range(rng.randint(1, 12)))
                   if not 0xD800 <= c <= 0xDFFF)


def broken_bytes(rng, text):
    data = bytearray(text.encode("utf-8"))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        data[place:place] = rng.choice([b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\x80"])
    return bytes(data)


def mixed_bytes(size, seed):
    rng, out, total = random.Random(seed), [], 0
    code = [line for text in standard_library(4 * size + 100_000) for line in text.splitlines(keepends=True)]
    while total < size:
        pick = rng.random()
        if pick < 0.5:
            start = rng.randrange(len(code) - 20)
            piece = "".join(code[start:start + rng.randint(1, 12)]).encode()
        elif pick < 0.75:
            piece = (scripted_line(rng) + "\n").encode()
        elif pick < 0.95:
            piece = (odd_line(rng) + rng.choice(["\n", " ", ""])).encode()
        else:
            piece = broken_bytes(rng, scripted_line(rng))
        out.append(piece)
        total += len(piece)
    return b"".join(out)


def training_texts(scripted=1500):
    rng = random.Random(7)
    return standard_library(400_000) + [scripted_line(rng) for _ in range(scripted)]


def bpe(tokenizer, size, special, **options):
    alphabet = options.pop("alphabet", [])
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet,
                                  show_progress=False, **options)
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def byte_level(pre_tokenizer, normalizer=None, special=GPT2_SPECIAL, size=4000, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return bpe(tokenizer, size, special, alphabet=pre_tokenizers.ByteLevel.alphabet())


def raw_byte_level():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def gpt2():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def roberta():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), special=["<s>", "<pad>", "</s>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.add_tokens([AddedToken("import", single_word=True), AddedToken("Ünique", rstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def llama3():
    tokenizer = byte_level(pre_tokenizers.Sequence([split(CL100K % "{1,3}"), raw_byte_level()]), special=[],
                           ignore_merges=True)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                                      special_tokens=[("<|begin_of_text|>", begin)])])
    return tokenizer


def qwen2():
    return byte_level(pre_tokenizers.Sequence([split(CL100K % ""), raw_byte_level()]), normalizer=normalizers.NFC())


def deepseek():
    return byte_level(pre_tokenizers.Sequence([
        split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK), pre_tokenizers.Digits(individual_digits=False),
        raw_byte_level()]))


def sentencepiece_bpe(normalizer, pre_tokenizer, first_space):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer
    # Without a pre-tokenizer training would take each text as one word.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    bpe(tokenizer, 4000, ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)])
    tokenizer.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if first_space else []))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                                             special_tokens=[("<s>", 1)])
    return tokenizer


def llama2():
    return sentencepiece_bpe(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, True)


def mistral():
    return sentencepiece_bpe(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), True)


def gemma():
    return sentencepiece_bpe(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), False)


def charsmap():
    """A small map as SentencePiece packs it: a double array and its replacements."""
    pairs = {"\t": " ", "\r": " ", "\n": " ", "\u00a0": " ", "\u3000": " ", "ﬁ": "fi", "①": "1", "…": "...", "\u0301": "",
             "e\u0301": "é", "ａ": "a", "㌔": "キロ", "\u200b": " ", "½": "1⁄2", "Ⅷ": "VIII"}
    blob, entries = b"", []
    for key in sorted(pairs, key=lambda k: k.encode()):
        entries.append((key.encode(), len(blob)))
        blob += pairs[key].encode() + b"\0"
    units, used = {0: 0}, {0}

    def place(node, group, depth):
        labels = sorted({0 if len(key) == depth else key[depth] for key, _ in group})
        base = 1
        while any((base ^ label) in used for label in labels):
            base += 1
        used.update(base ^ label for label in labels)
        offset = node ^ base
        units[node] |= (offset << 10) | (1 << 8 if 0 in labels else 0)
        assert offset < 1 << 21
        for label in labels:
            units[base ^ label] = label
        for label in labels:
            below = [(key, value) for key, value in group if (0 if len(key) == depth else key[depth]) == label]
            if label == 0:
                units[base] = below[0][1] | 1 << 31
            else:
                place(base ^ label, below, depth + 1)

    place(0, entries, 0)
    size = (max(used) // 256 + 1) * 256
    trie = b"".join(struct.pack("<I", units.get(i, 0)) for i in range(size))
    return base64.b64encode(struct.pack("<I", len(trie)) + trie + blob).decode()


def t5():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=4000, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
                                      show_progress=False)
    tokenizer.train_from_iterator(training_texts(scripted=60), trainer)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>",
                                                             special_tokens=[("</s>", 1)])
    spec = json.loads(tokenizer.to_str())
    spec["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap()}
    return Tokenizer.from_str(json.dumps(spec))


def xlnet():
    tokenizer = t5()
    spec = json.loads(tokenizer.to_str())
    spec["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}, {"type": "NFKD"}, {"type": "StripAccents"},
        {"type": "Lowercase"}, spec["normalizer"], {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}]}
    return Tokenizer.from_str(json.dumps(spec))


def bert():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=4000, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
                                        show_progress=False)
    tokenizer.train_from_iterator(training_texts(), trainer)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                             special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def clip():
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "),
                                                 normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe(tokenizer, 4000, ["<|startoftext|>", "<|endoftext|>"], alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>")
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    return tokenizer


def wordlevel():
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Whitespace(), pre_tokenizers.UnicodeScripts(), pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.FixedLength(7)])
    trainer = trainers.WordLevelTrainer(vocab_size=3000, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


FAMILIES = {f.__name__: f for f in (gpt2, roberta, llama3, qwen2, deepseek, llama2, mistral, gemma, t5, xlnet, bert, clip,
                                    wordlevel)}


def from_gguf(path):
    """The tokenizer of a byte-level GGUF file whose text is cut as SmolLM2's is."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    get = lambda name: fields[f"tokenizer.ggml.{name}"].contents()
    assert get("model") == "gpt2" and get("pre") == "smollm"
    tokens, kinds = get("tokens"), get("token_type")
    model = models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in get("merges")])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds) if kind == 3])
    return tokenizer


def read(data):
    return data.decode("utf-8", errors="replace")


def cases():
    rng = random.Random(11)
    code = mixed_bytes(2000, 3)
    lines = [b"", b" ", b"  ", b"\n", code[:1500]]
    lines += [scripted_line(rng).encode() for _ in range(70)] + [odd_line(rng).encode() for _ in range(90)]
    lines += [broken_bytes(rng, scripted_line(rng)) for _ in range(25)]
    return lines + [text.encode() for text in YOUNG]


def write_expected(tokenizer, folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "expected.txt", "w", encoding="ascii") as out:
        for line in lines:
            ids = tokenizer.encode(read(line)).ids
            text = tokenizer.decode(ids, skip_special_tokens=False) if ids else ""
            out.write(" ".join(map(str, ids)) + "\t" + text.encode().hex() + "\n")


def write_data(gguf):
    lines = cases()
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / "tokenizer_cases.txt").write_text("".join(line.hex() + "\n" for line in lines), encoding="ascii")
    for name, make in FAMILIES.items():
        tokenizer = make()
        (DATA / name).mkdir(parents=True, exist_ok=True)
        (DATA / name / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        write_expected(Tokenizer.from_file(str(DATA / name / "tokenizer.json")), DATA / name, lines)
        print(name, (DATA / name / "tokenizer.json").stat().st_size, "bytes", file=sys.stderr)
    if gguf:
        write_expected(from_gguf(gguf), DATA / "smollm2_gguf", lines)


def seconds_of(work):
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def compare_one(program, model, tokenizer, corpus, rounds):
    """(problem or None, seconds of our process, seconds of the library's encode()): the fastest of the rounds."""
    text = read(corpus.read_bytes())
    ours_s, theirs_s = [], []
    for _ in range(rounds):
        seconds, done = seconds_of(lambda: subprocess.run(
            [program, "tokenize", str(model), "--file", str(corpus), "--json"], capture_output=True, text=True))
        if done.returncode != 0:
            return f"program failed: {done.stderr.strip()}", 0.0, 0.0
        ours_s.append(seconds)
        seconds, encoded = seconds_of(lambda: tokenizer.encode(text))
        theirs_s.append(seconds)
    ours, theirs = json.loads(done.stdout)["ids"], encoded.ids
    if ours == theirs:
        print(f"  equal: {len(ours)} ids of {len(text)} characters; process {min(ours_s):.2f} s, "
              f"library {min(theirs_s):.2f} s")
        return None, min(ours_s), min(theirs_s)
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    return (f"differ at id {first}: ours {ours[first - 2:first + 4]}, theirs {theirs[first - 2:first + 4]} after "
            f"{tokenizer.decode(theirs[max(0, first - 8):first])!r}"), 0.0, 0.0


def write_rows(path, rows, megabytes):
    machine = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as out:
        for name, ours, theirs in rows:
            out.write(json.dumps({"op": "tokenize", "variant": name, "megabytes": megabytes, "threads": 1,
                                  "process_seconds": round(ours, 3), "library_encode_seconds": round(theirs, 3),
                                  "ratio_to_library": round(theirs / ours, 2), "machine": machine}) + "\n")


def compare(program, gguf, megabytes, rounds, out):
    failed, rows = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        corpus = pathlib.Path(scratch) / "corpus.bin"
        runs = "\n".join(text * 12_000 for text in LONG_RUNS) + " ".join(YOUNG)
        corpus.write_bytes(mixed_bytes(int(megabytes * 1_000_000), 99) + runs.encode())
        targets = [(name, DATA / name, Tokenizer.from_file(str(DATA / name / "tokenizer.json"))) for name in FAMILIES]
        if gguf:
            targets.append(("smollm2_gguf", gguf, from_gguf(gguf)))
        for name, model, tokenizer in targets:
            print(name)
            problem, ours, theirs = compare_one(program, model, tokenizer, corpus, rounds)
            rows.append((name, ours, theirs))
            if problem:
                failed += 1
                print("  " + problem)
    if out and not failed:
        write_rows(out, rows, megabytes)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data")
    data.add_argument("--gguf")
    run = commands.add_parser("compare")
    run.add_argument("program")
    run.add_argument("--gguf")
    run.add_argument("--megabytes", type=float, default=1.0)
    run.add_argument("--rounds", type=int, default=1)
    run.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    if options.command == "data":
        write_data(options.gguf)
        return 0
    return 1 if compare(options.program, options.gguf, options.megabytes, options.rounds, options.out) else 0


if __name__ == "__main__":
    sys.exit(main())
