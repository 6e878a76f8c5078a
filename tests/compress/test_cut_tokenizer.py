"""Vocabulary pruning of a BPE: which tokens are kept, that texts decode unchanged, and which tokenizers are refused."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from helpers.texts import texts, trained_bytelevel
from helpers.tiny_llama import sentencepiece_json
from shrinkc.compression.cut_tokenizer import BpeTokens
from shrinkc.core.errors import TokenizerNotCut
from shrinkc.importer.tokenizer_json import LLAMA3_WORDS

ROOT = Path(__file__).resolve().parents[2]
STORY = json.loads((ROOT / "examples/stories/tokenizer.json").read_text())
TRAINED = trained_bytelevel()
README = (ROOT / "README.md").read_text()
SPLIT = {
    "type": "Split",
    "pattern": {"Regex": LLAMA3_WORDS},
    "behavior": "Isolated",
    "invert": False,
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BOS = STORY["post_processor"]["special_tokens"]["<s>"]


def changed(spec: dict[str, Any], **model: Any) -> dict[str, Any]:
    copied = copy.deepcopy(spec)
    copied["model"].update(model)
    return copied


def llama3() -> dict[str, Any]:
    """Return a tokenizer like LLaMA 3's: known words skip merges, merges are texts, and BOS has the last id."""
    spec = changed(TRAINED, ignore_merges=True)
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}
    last = len(spec["model"]["vocab"])
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": last, "content": "<s>"})
    template = {**STORY["post_processor"], "special_tokens": {"<s>": {**BOS, "ids": [last]}}}
    spec["post_processor"] = {"type": "Sequence", "processors": [BYTES, template]}
    return spec


SPECS = {"stories": (STORY, 340), "gpt2": (TRAINED, 420), "llama3": (llama3(), 420)}


def engine(spec: dict[str, Any]) -> Any:
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def used(spec: dict[str, Any], text: str = README) -> Counter[int]:
    return Counter(engine(spec).encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", SPECS)
def test_every_text_comes_back(name: str) -> None:
    spec, keep = SPECS[name]
    bpe = BpeTokens(spec)
    kept = bpe.choose(used(spec), keep=keep).kept
    assert len(kept) == keep < len(bpe.ids)
    old, new = engine(spec), engine(bpe.cut(kept))
    assert new.get_vocab_size() == keep
    special = [token["content"] for token in spec["added_tokens"]]
    same = 0
    for text in [*texts(3, special), README, *README.split()]:
        before, after = old.encode(text).ids, new.encode(text).ids
        back = [t.decode(i, skip_special_tokens=False) for t, i in ((old, before), (new, after))]
        assert back[0] == back[1], repr(text)
        # a text with kept tokens only keeps its tokens, as the trained model needs
        if set(before) <= set(kept):
            same += 1
            assert [kept[index] for index in after] == before
    assert same > 100
    # the start of a text and its special tokens do not change
    assert [kept[index] for index in new.encode("").ids] == old.encode("").ids
    for token in spec["added_tokens"]:
        assert new.token_to_id(token["content"]) == kept.index(token["id"])


@pytest.mark.parametrize("name", SPECS)
def test_merges_are_closed(name: str) -> None:
    spec, keep = SPECS[name]
    bpe = BpeTokens(spec)
    cut = bpe.cut(bpe.choose(used(spec), keep=keep).kept)
    vocab, old = cut["model"]["vocab"], spec["model"]["merges"]
    made = set()
    for merge in cut["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        assert {left, right, left + right} <= set(vocab)
        made.add(left + right)
    assert [m for m in old if m in cut["model"]["merges"]] == cut["model"]["merges"], "old order"
    always = {bpe.texts[index] for index in bpe.required if index in bpe.texts}
    assert {piece for piece in vocab if len(piece) > 1} - always <= made
    assert sorted(vocab.values()) == list(range(len(vocab)))


def test_the_most_frequent_tokens_are_kept() -> None:
    """The result equals repeated removal of the least used token that no other token needs."""
    bpe, count = BpeTokens(TRAINED), used(TRAINED)
    uses = Counter(count)
    left = set(bpe.texts)
    parts = {bpe.ids[a + b]: (bpe.ids[a], bpe.ids[b]) for a, b in bpe.merges}
    while len(left) > 420:
        needed = {part for index in left & parts.keys() for part in parts[index]}
        leaves = left - needed - bpe.required
        # ties: the token of the latest merge
        least = min(leaves, key=lambda index: (uses[index], -bpe._first_rank(index)))
        left.remove(least)
        for part in parts[least]:
            uses[part] += uses[least]
    assert len(left) == 420
    choice = bpe.choose(count, keep=420)
    covered = sum(n for index, n in count.items() if index in left) / sum(count.values())
    assert choice.covered == pytest.approx(covered, abs=0.002)


def test_expected_counts_are_added_to_the_texts() -> None:
    bpe, count = BpeTokens(TRAINED), used(TRAINED)
    text, more = dict(list(count.items())[::2]), dict(list(count.items())[1::2])
    whole = bpe.choose(count, keep=420)
    parts = bpe.choose(text, expected=more, keep=420)
    assert parts.kept == whole.kept != bpe.choose(text, keep=420).kept
    # ``covered`` counts the texts only
    inside = sum(n for index, n in text.items() if index in whole.kept)
    assert parts.covered == inside / sum(text.values())


def test_a_share_takes_as_few_as_cover_it() -> None:
    bpe, count = BpeTokens(TRAINED), used(TRAINED)
    total = sum(count.values())
    for share in (0.9, 0.97, 1.0):
        choice = bpe.choose(count, share=share)
        assert choice.covered >= share
        assert choice.covered == sum(n for i, n in count.items() if i in choice.kept) / total
        one_less = bpe.choose(count, keep=len(choice.kept) - 1)
        assert one_less.covered < share
        rounded = bpe.choose(count, share=share, multiple=64)
        assert len(rounded.kept) == -(-len(choice.kept) // 64) * 64
    assert set(count) <= set(bpe.choose(count, share=1.0).kept)


def test_required_tokens() -> None:
    bpe = BpeTokens(STORY)
    needed = {*range(3), *range(3, 259), STORY["model"]["vocab"]["▁"]}
    assert bpe.required == needed
    choice = bpe.choose({}, keep=1)
    assert set(choice.kept) == needed and choice.required == len(needed) and choice.covered == 1.0
    # a token in ``always`` is kept with all its parts
    index = next(i for p, i in bpe.ids.items() if p == "▁there")
    kept = set(bpe.choose({}, [index], keep=1).kept)
    assert kept == needed | set(bpe.parts(index)) and len(kept) > len(needed) + 2
    # without texts, the tokens of the earliest merges are kept
    first = bpe.choose({}, keep=len(needed) + 2).kept
    assert bpe.merges[0] == ("▁", "t")
    assert {bpe.texts[index] for index in set(first) - needed} == {"t", "▁t"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            {"model": {"type": "Unigram", "vocab": [["a", -1.0]]}},
            "the tokenizer is a Unigram, of which no piece is made of others by merges",
        ),
        (sentencepiece_json(), "has no bytes to spell a text with"),
        (changed(STORY, byte_fallback=False), "has no bytes to spell a text with"),
        (changed(STORY, end_of_word_suffix="</w>"), "have a end_of_word_suffix ('</w>')"),
        (
            STORY | {"post_processor": {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}},
            "the tokenizer's post-processor BertProcessing is not known",
        ),
    ],
)  # fmt: skip
def test_other_tokenizers_are_refused(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(TokenizerNotCut, match=re.escape(said)) as caught:
        BpeTokens(spec)
    assert caught.value.exit_code == 18 and "leave out the stage" in str(caught.value)
