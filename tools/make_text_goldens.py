#!/usr/bin/env python3
"""Trains the small tokenizers of tests/text/data/tokenizers and writes what the reference (the Python
package `tokenizers`) gives for texts that are hard to get right: tests/text/data/encodings.json.

With --shared DIR also for the published vocabularies in DIR/tokenizers, whose files are not part of the
project; only the ids are written. Usage: make_text_goldens.py [--shared DIR] [--check]
"""

import argparse
import json
import pathlib
import random

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "text" / "data"

PROSE = """The weir holds the water and lets it go, a little at a time. When the river is high the gates are
opened; when it is low they are shut. The keeper walks along the bank in the morning, and he says: "It's
raining again, isn't it? We'll have 12 more inches by 18:30." He didn't wait for an answer. At 7 o'clock he
counts: 1, 2, 3, 10, 100, 1000. Die Schleuse öffnet sich früh, naïve façades, señor. if (x == 0) { return
f(x + 1); } // done\n\tfor i in range(10):\n\t\tprint(i)\n\nhttps://example.org/path?query=1&more=2\n"""

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "  leading and trailing  ",
    "tabs\tand\nnew lines\r\nand CRLF\r\n\r\nand a lone \r return",
    "\n\n\n   \n\t\n",
    "don't we'll they're I've it's he'd I'm DON'T WE'LL \u2019tis o\u2019clock",
    "1234567890 3.14159 1,000,000 0x1F 1e-7 \u0661\u0662\u0663 \u00bd \u2163 \u00b2",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 \u2764\ufe0f 1\ufe0f\u20e3",
    "e\u0301 \u00e9 a\u0308\u0323 \u1e9b\u0323 \u212b A\u030a \ufb01 \u0344 q\u0307\u0323",
    "z\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308\u0309\u030a\u030b\u030ca\u034f\u0316lgo",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eRTL\u202c \u200fmark\u200e \u0627\u0644\u0633\u0644\u0627\u0645\u064f",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u6f22\u5b57\u304b\u306a\u30ab\u30ca \ud55c\uad6d\uc5b4 \uff21\uff22\uff23\uff11\uff12\uff13 \u3000\u5168\u89d2",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0928\u092e\u0938\u094d\u0924\u0947 \u0b95\u0bcd\u0bb7 \u1019\u103c\u1014\u103a\u1019\u102c \u0f56\u0f7c\u0f51",
    "nul\u0000in\u0000side \u0001\u0002\u0007\u0008\u000b\u000c\u000e\u001b[31m\u007f\u0080\u0085\u009f",
    "\u00a0nbsp\u2003em\u2009thin\u200bzero\u2060joiner\ufeffbom\u3000\u2028line\u2029para\u180e",
    "\ufffd \ufffe \uffff \U0001ffff \U0010fffd \U000e0041 \ue000",
    "\\ud83d\\ude00 \\u0000 \\x00 %00 &#0; &lt;b&gt; \\\\ \\n",
    "<|endoftext|>",
    "a<|endoftext|>b <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_start|> <|im_end|><|endoftext|> <s> </s> <unk> [CLS] [SEP] [MASK] <pad>",
    "<|im_start <|im_end|]> < |im_end|> <|IM_END|> <|im_\u200bend|> <|endoftext|<|endoftext|>>",
    "<think>a\n</think> <think> x<think>y <tool_call>",
    "\u0120the \u010a \u0100 \u2581the\u2581 <0x41> <0xE4><0xBD> ##ing </w>",
    "x" * 3000,
    "ab" * 700 + "\u00e9\u4f60" * 150,
    " " * 1200 + "a" + "\n" * 300 + "b" + "\t \t" * 100,
    "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft" * 3,
    "\U0001f9d1\u200d\U0001f680" * 60,
    "CamelCase snake_case kebab-case SCREAMING_CASE x1y2z3 ___ --- ... !!! ??? $$$ ```python\n",
    "def f(x):\n    if x:\n        return {'a': [1, 2, (3,)], \"b\": None}  # \u00e9\n\n\n",
    "\u0130stanbul \u0131\u015f\u0131k \u00dfstra\u00dfe \u01c4 \u0149 \u1e9e \u03a3\u03c2\u03c3 \ua7b7",
    "\U00010348\U00012000\U0001d49c\U00020000\U0002f800",
    PROSE,
]


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROSE], trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    # A file may ask for both; a server must not cut a prompt because of it.
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=64, pad_id=0, pad_token="<|endoftext|>")
    return tokenizer, {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>", "special": True}}


def byte_fallback_bpe():
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    alphabet = sorted(set(PROSE.replace(" ", "\u2581").replace("\n", "").replace("\t", "")))
    pieces += alphabet
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("e", "r"), ("\u2581", "w"), ("i", "n"), ("in", "g"),
              ("a", "n"), ("an", "d"), ("\u2581", "and"), ("\u2581", "\u2581"), ("r", "e"), ("\u2581w", "a")]
    pieces += [a + b for a, b in merges]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def unigram_metaspace():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", "<pad>", "</s>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([PROSE], trainer)
    return tokenizer, {"eos_token": "</s>", "pad_token": "<pad>"}


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=250, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False)
    tokenizer.train_from_iterator([PROSE], trainer)
    ids = {t: tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return tokenizer, {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def suffix_bpe():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=250, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator([PROSE], trainer)
    return tokenizer, {"unk_token": "<unk>"}


def no_decoder():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=80, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([PROSE], trainer)
    return tokenizer, {}


SMALL = {
    "byte_level_bpe": byte_level_bpe,
    "byte_fallback_bpe": byte_fallback_bpe,
    "unigram_metaspace": unigram_metaspace,
    "word_piece": word_piece,
    "suffix_bpe": suffix_bpe,
    "no_decoder": no_decoder,
}


def random_ids(rng, tokenizer, name):
    size = tokenizer.get_vocab_size()
    # A run of byte tokens that is not UTF-8 decodes otherwise in Weir (text/rust/src/decode.rs).
    low = 259 if name == "byte_fallback_bpe" else 0
    return [rng.randrange(low, size) for _ in range(rng.randrange(1, 60))]


def expectations(tokenizer, name):
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rng = random.Random(name)
    ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]
    out = {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "ids": ids,
        "with_special": [tokenizer.encode(t).ids for t in TEXTS[:5]],
        "decoded": [tokenizer.decode(i, skip_special_tokens=False) for i in ids],
        "decoded_skip": [tokenizer.decode(i, skip_special_tokens=True) for i in ids],
        "random": [],
    }
    # Most decode to the text they came from.
    for key in ("decoded", "decoded_skip"):
        out[key] = {str(i): d for i, (d, t) in enumerate(zip(out[key], TEXTS)) if d != t}
    for _ in range(20):
        some = random_ids(rng, tokenizer, name)
        out["random"].append({"ids": some, "text": tokenizer.decode(some, skip_special_tokens=False)})
    tokenizer.encode_special_tokens = True
    plain = [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]
    out["plain"] = {str(i): p for i, (p, q) in enumerate(zip(plain, ids)) if p != q}
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=pathlib.Path, help="folder with tokenizers/{gpt-2,qwen2}/tokenizer.json")
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing")
    args = parser.parse_args()
    path = DATA / "encodings.json"
    old = json.loads(path.read_text())["tokenizers"] if path.exists() else {}
    result = {}
    for name, make in SMALL.items():
        tokenizer, config = make()
        folder = DATA / "tokenizers" / name
        if not args.check:  # training breaks ties as it likes; the committed file counts
            folder.mkdir(parents=True, exist_ok=True)
            tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
            (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
        result[name] = expectations(Tokenizer.from_file(str(folder / "tokenizer.json")), name)
    for name in ("gpt-2", "qwen2"):
        if args.shared:
            file = args.shared / "tokenizers" / name / "tokenizer.json"
            result["shared/" + name] = expectations(Tokenizer.from_file(str(file)), name)
        elif "shared/" + name in old:
            result["shared/" + name] = old["shared/" + name]
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in result.items())
    text = f'{{"texts": {json.dumps(TEXTS)},\n"tokenizers": {{\n{lines}\n}}}}\n'
    if args.check:
        assert path.read_text() == text, f"{path} is not what this script makes"
    else:
        path.write_text(text)
    print(f"{path.name}: {len(TEXTS)} texts, {len(result)} tokenizers, {len(text)} bytes")


if __name__ == "__main__":
    main()
