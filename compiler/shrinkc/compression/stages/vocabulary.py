"""Stage ``vocabulary``: vocabulary pruning removes tokens that the texts do not need.

:mod:`shrinkc.compression.cut_tokenizer` chooses them so that every text can still be encoded.  Counts alone say
little about rare tokens: in 800,000 tokens of English, half of SmolLM2's tokens occur once or never.  Therefore the
model's predicted probabilities of the next token, summed over all positions, are added to the counts.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from shrinkc.checkpoints import load, load_tokenizer, save, stored_dtype
from shrinkc.compression.calibration import Calibration, encode_texts
from shrinkc.compression.checks import Between, Checked, exactly_one
from shrinkc.compression.cut_tokenizer import BpeTokens, Choice
from shrinkc.compression.facts import ModelFacts, predicted
from shrinkc.compression.stages.context import StageKind, StepContext, StepReport, Work
from shrinkc.compression.texts import Text, read_texts
from shrinkc.core.errors import BadData, BadRecipe, StageFailed
from shrinkc.core.output import new_file

MULTIPLE = 64  # with ``share``, the number of tokens is rounded up to a multiple of it
TOKENS = "kept_tokens.json"
# fields of config and generation config that hold ids, besides …_token_id
_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens")
_ID_TABLES = ("bad_words_ids", "forced_decoder_ids", "sequence_bias")
_CHAT = tuple(
    {"role": role, "content": "Hello"} for role in ("user", "assistant", "user")
)  # fmt: skip
_CHECKED = 20_000  # characters of each text that are encoded and decoded as a check
_SAVED = 16  # windows between two saved sums of probabilities


@dataclass(frozen=True)
class Settings(Checked):
    """Settings of vocabulary pruning."""

    text: tuple[str, ...] = ()
    """Texts that show which tokens are used.  Default: those of ``calibration``."""
    keep: Annotated[int, Between(1)] | None = None
    """Largest number of tokens to keep.  One of ``keep`` and ``share`` is needed."""
    share: Annotated[float, Between(0.5, 1)] | None = None
    """Share of the texts' tokens that the kept tokens have to cover.  The number of kept tokens is
    rounded up to a multiple of 64."""
    samples: Annotated[int, Between(0)] = 128
    """Only with ``keep``: in this many windows, the tokens that the model predicts count as used,
    too.  With 0, only the tokens of the texts count."""
    length: Annotated[int, Between(8)] = 512
    """Tokens in a window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        exactly_one(keep=self.keep, share=self.share)

    @property
    def asks_model(self) -> bool:
        """Whether the model's predictions are counted."""
        return self.keep is not None and self.samples > 0

    @property
    def needs_calibration(self) -> bool:
        """Whether the calibration's texts are counted."""
        return not self.text


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    """Return the problem that windows are longer than the model's context, if they are."""
    if settings.asks_model and settings.length > facts.config.max_position:
        return [f"length = {settings.length}: the model's context is {facts.config.max_position}"]
    return []


def predict(settings: Settings, facts: ModelFacts) -> ModelFacts:
    """Return the facts with ``keep`` tokens; with ``share`` the number is unknown, so they do not change."""
    if settings.keep is None:
        return facts
    return predicted(facts, vocab_size=min(settings.keep, facts.config.vocab_size))


def check_data(settings: Settings, calibration: Calibration, tokenizer: Any) -> list[str]:
    """Raise TokenizerNotCut, BadRecipe and BadData before the work; choosing tokens takes only seconds."""
    choose(settings, _texts(settings, calibration), tokenizer)
    return []


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the tokens of the windows that the model predicts."""
    return Work(settings.samples * settings.length if settings.asks_model else 0)


def memory(settings: Settings, facts: ModelFacts, calibration: Calibration) -> int:
    """Return the bytes of a window's logits and probabilities."""
    return 3 * 4 * settings.length * facts.config.vocab_size if settings.asks_model else 0


def run(settings: Settings, step: StepContext) -> StepReport:
    """Prune tokenizer, embedding, LM head and configs; ``kept_tokens.json`` lists the old id of every new id."""
    old = load_tokenizer(step.source)
    texts = _texts(settings, step.calibration)
    asked = settings.asks_model and (settings.keep or 0) < len(old)
    expected = _expected_counts(settings, step, texts) if asked else {}
    with step.reporter.stage("vocabulary: counting tokens"):
        bpe, choice = choose(settings, texts, old, _named_ids(step.source), expected)
        kept = choice.kept
        tokenizer = _cut_tokenizer(old, bpe, kept, step.scratch / "tokenizer")
        _check(old, tokenizer, texts)
    with step.reporter.stage("vocabulary: cutting"):
        # in the stored dtype, so that kept rows do not change
        model = load(step.source, dtype=stored_dtype(step.source)).model
        before = int(model.config.vocab_size)
        keep_rows(model, kept)
        notes = renumber(model, {index: new for new, index in enumerate(kept)})
        if len(kept) == before:
            notes.append(f"all {before} tokens of the model stay")
        save(model, tokenizer, step.out)
        with new_file(step.out / TOKENS) as file:
            file.write(json.dumps(kept).encode())
    return StepReport(
        {
            "tokens_before": before,
            "tokens": len(kept),
            "always_kept": choice.required,
            "covered": choice.covered,
            **_expected_covered(expected, kept),
            "tokens_of_texts": [sum(_used(texts, t).values()) for t in (old, tokenizer)],
        },
        notes,
    )


def _expected_counts(settings: Settings, step: StepContext, texts: list[Text]) -> dict[int, float]:
    """Return id -> predicted occurrences in the texts: its mean probability times the number of tokens."""
    import torch

    loaded = load(step.source, dtype=step.dtype, device=step.device)
    ids = torch.tensor(encode_texts(texts, loaded.tokenizer))
    windows = spread(len(ids), settings.length, settings.samples)
    state, done, places = step.scratch / "expected.pt", 0, 0
    total = torch.zeros(loaded.model.config.vocab_size, dtype=torch.float64)
    if state.exists():
        done, places, total = torch.load(state, weights_only=True)
    with torch.no_grad(), step.reporter.stage("vocabulary: what the model expects") as update:
        update(done, len(windows))
        for window in windows[done:]:
            given = ids[window][None].to(step.device)
            logits = loaded.model(input_ids=given, use_cache=False).logits[0]
            total += torch.softmax(logits.float(), 1).sum(0, dtype=torch.float64).cpu()
            done, places = done + 1, places + logits.shape[0]
            if done % _SAVED == 0:
                with new_file(state) as file:
                    torch.save((done, places, total), file)
            update(done, len(windows))
    if not torch.isfinite(total).all():
        raise StageFailed(
            "vocabulary: what the model expects is not finite.",
            "look at the model; samples = 0 for vocabulary counts tokens without it.",
        )
    return dict(enumerate((total * (len(ids) / places)).tolist()))


def spread(tokens: int, length: int, samples: int) -> list[slice]:
    """Return at most ``samples`` evenly spread windows of ``length`` in ``tokens``; a shorter text is one window."""
    available = tokens // length
    if available == 0:
        return [slice(0, tokens)]
    count = min(available, samples)
    starts = [i * available // count * length for i in range(count)]
    return [slice(start, start + length) for start in starts]


def _expected_covered(expected: Mapping[int, float], kept: tuple[int, ...]) -> dict[str, float]:
    """Return the share of the predicted occurrences that the kept tokens cover; {} without predictions."""
    if not expected:
        return {}
    return {
        "expected_covered": round(sum(map(expected.__getitem__, kept)) / sum(expected.values()), 6)
    }


def tokens_left(steps: Iterable[Path]) -> tuple[int, ...] | None:
    """Return the original model's ids of the tokens that remain after ``steps``, in the order of the new ids.

    None if no step pruned the vocabulary."""
    found: tuple[int, ...] | None = None
    for step in steps:
        if not (step / TOKENS).is_file():
            continue
        kept = tuple(json.loads((step / TOKENS).read_text(encoding="utf-8")))
        found = kept if found is None else tuple(found[index] for index in kept)
    return found


def choose(
    settings: Settings,
    texts: list[Text],
    tokenizer: Any,
    named: Iterable[int] = (),
    expected: Mapping[int, float] = MappingProxyType({}),
) -> tuple[BpeTokens, Choice]:
    """Choose the tokens to keep, including the ids ``named``; ``expected``: see :meth:`BpeTokens.choose`.

    Raises TokenizerNotCut, BadData for texts without a token, and BadRecipe if ``keep`` is too small.
    """
    bpe = BpeTokens(json.loads(tokenizer.backend_tokenizer.to_str()))
    always = [index for index in (*named, *_chat_ids(tokenizer)) if index in bpe.texts]
    used = _used(texts, tokenizer)
    if not used and not any(text.unwritten for text in texts):
        names = ", ".join(text.name for text in texts)
        raise BadData(
            f"vocabulary.text: {names} has no tokens.",
            "give text that is like what the model is for.",
        )
    choice = bpe.choose(
        used,
        always,
        expected=expected,
        keep=settings.keep,
        share=settings.share,
        multiple=MULTIPLE,
    )
    if settings.keep is not None and len(choice.kept) > settings.keep:
        raise BadRecipe(
            f"vocabulary.keep = {settings.keep}: {choice.required} tokens have to stay: bytes, "
            "special tokens, and those of the chat template.",
            f"allowed: {choice.required} and more.",
        )
    return bpe, choice


def _texts(settings: Settings, calibration: Calibration) -> list[Text]:
    if not settings.text:
        return calibration.texts
    return read_texts(settings.text, "vocabulary.text", calibration.self_generated)


def _used(texts: list[Text], tokenizer: Any) -> Counter[int]:
    """Count the ids of all texts that are written already."""
    return Counter(encode_texts([text for text in texts if not text.unwritten], tokenizer))


def _chat_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the texts that the chat template adds to messages; [] without a template."""
    if not tokenizer.chat_template:
        return []
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            list(_CHAT), tokenize=False, add_generation_prompt=True
        )
    except TemplateError:  # a template for other roles: its texts may need smaller tokens
        return []
    return list(tokenizer.encode(text, add_special_tokens=False))


def keep_rows(model: Any, kept: tuple[int, ...]) -> None:
    """Remove all rows except ``kept`` from embedding, LM head and config."""
    import torch

    rows = torch.tensor(kept)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight

    def cut(weight: Any) -> Any:
        return torch.nn.Parameter(weight.data[rows.to(weight.device)].clone(), requires_grad=False)

    embedding.weight = cut(embedding.weight)
    head.weight = embedding.weight if tied else cut(head.weight)
    embedding.num_embeddings = head.out_features = len(kept)
    embedding.padding_idx = None  # it is an old id; the config gets the new one
    model.config.vocab_size = model.vocab_size = len(kept)


def renumber(model: Any, new: Mapping[int, int]) -> list[str]:
    """Replace the ids in config and generation config by new ones; return a note for each removed field."""
    notes = []
    for config in (model.config, model.generation_config):
        for name, value in config.to_dict().items():
            if name in _ID_TABLES and value is not None:
                setattr(config, name, None)
                notes.append(f"{name} of the generation config holds token ids and was left out")
            elif (name.endswith("_token_id") or name in _ID_LISTS) and value is not None:
                setattr(config, name, _renumbered(value, new))
    return notes


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """Return the new id of ``value``, or the new ids of a list without removed ones; negative values do not change."""
    if isinstance(value, list):
        return [new[index] for index in value if index in new]
    return new.get(value, value) if value < 0 else new.get(value)


def _named_ids(source: Path) -> set[int]:
    """Return the special ids in config and generation config."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if (source / name).is_file():
            content = json.loads((source / name).read_text(encoding="utf-8"))
            for key, value in content.items():
                if key.endswith("_token_id"):
                    values = value if isinstance(value, list) else [value]
                    found.update(index for index in values if index is not None)
    return found


def _cut_tokenizer(old: Any, bpe: BpeTokens, kept: tuple[int, ...], folder: Path) -> Any:
    """Return the tokenizer with the tokens ``kept`` only, loaded by transformers."""
    shutil.rmtree(folder, ignore_errors=True)
    old.save_pretrained(folder)
    # other files with the old vocabulary, which some classes would read first
    for name in ("tokenizer.model", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    document = bpe.cut(kept)
    (folder / "tokenizer.json").write_text(
        json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8"
    )
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    if "added_tokens_decoder" in settings:
        new = {str(index): str(at) for at, index in enumerate(kept)}
        table = settings["added_tokens_decoder"]
        settings["added_tokens_decoder"] = {new[k]: v for k, v in table.items()}
        settings_file.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    return load_tokenizer(folder)


def _check(old: Any, new: Any, texts: list[Text]) -> None:
    """Raise StageFailed unless the new tokenizer decodes its ids of the texts like the old one."""
    for text in texts:
        part = text.content[:_CHECKED]
        before, after = (
            t.backend_tokenizer.decode(
                t.backend_tokenizer.encode(part).ids, skip_special_tokens=False
            )
            for t in (old, new)
        )
        if before != after:
            raise StageFailed(
                f"vocabulary: {text.name} does not come back from its new ids as it did before.",
                "this is a defect; please report it with the model's tokenizer.json.",
            )


VOCABULARY = StageKind(
    name="vocabulary",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=9,
    predict=predict,
    changes_embeddings=True,
    preflight=preflight,
    check_data=check_data,
    memory=memory,
)
