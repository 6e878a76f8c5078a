"""Opening of all kinds of checkpoints: Hugging Face, GPTQModel and GGUF."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from shrinkc.core.errors import BadConfig, ModelNotFound
from shrinkc.core.shell import name_of
from shrinkc.importer.config import parse_config, read_config
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.gguf_model import gguf_config, gguf_formats, load_gguf
from shrinkc.importer.gguf_tokenizer import load_tokenizer
from shrinkc.importer.gptq import (
    GptqFiles,
    find_adapter,
    gptq_formats,
    gptq_formats_by_rules,
    gptq_llama_config,
    load_gptq,
    permuted_by_rules,
)
from shrinkc.importer.gptq_config import GptqConfig, gptq_config_of, parse_gptq_config
from shrinkc.importer.hf import Progress, check_directory, open_hf, read_hf
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.importer.lora import adapter_ranks, load_adapter
from shrinkc.importer.model import FloatModel, Formats
from shrinkc.importer.repeats import repeated_layers
from shrinkc.importer.safetensors_file import has_weights
from shrinkc.importer.tokenizer import Tokenizer, has_tokenizer
from shrinkc.model import LlamaConfig

_Load = Callable[[Progress | None], FloatModel]


@dataclass(frozen=True)
class Checkpoint:
    """An opened model: configuration, tokenizer and headers are read, weights are not.

    Attributes:
        path: Its directory or file.
        name: Name of the directory or file.
        config: Sizes, such as ``num_layers``, ``hidden_size`` and ``vocab_size``.
        formats: Module -> (bits, inputs per scale, zero point) of matrices that are stored as integers.
            None if all are floats.
        tokenizer: The tokenizer.  None if there is none, which ``notes`` say.
        adapter: Directory of the low-rank adapter that is loaded too.
        adapter_given: Whether that adapter was asked for, not found in a GPTQModel directory.
        ranks: (layer, module such as ``"q_proj"``) -> rank of its adapter.
        notes: Missing parts and assumptions.
        hub: The id of a model that was fetched from the hub.
        permuted: Modules whose inputs are stored in another order; without weights, those that may be.
        license: Of the weights, as the model's files state it; empty if they state none.
    """

    path: Path
    name: str
    config: LlamaConfig
    formats: Formats | None
    tokenizer: Tokenizer | None
    adapter: Path | None = None
    adapter_given: bool = False
    ranks: Mapping[tuple[int, str], int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _load: _Load | None = field(default=None, repr=False, compare=False)
    hub: str | None = None
    permuted: frozenset[str] = frozenset()
    license: str = ""

    def __repr__(self) -> str:
        c, stored = self.config, "floats" if self.formats is None else "integers"
        lacks = "" if self.whole else ", not whole"
        return f"<Checkpoint {self.name}: {c.family}, {c.num_layers} layers, hidden {c.hidden_size}, {stored}{lacks}>"

    @property
    def whole(self) -> bool:
        """Whether weights and tokenizer are there.  If not, the model can only be planned."""
        return self._load is not None

    @cached_property
    def repeats(self) -> tuple[int, ...]:
        """For each layer, the first layer with the same bytes; empty if no layer repeats another."""
        return repeated_layers(self.path)

    def load(self, progress: Progress | None = None) -> FloatModel:
        """Read the weights.  Stored integers become QuantizedWeight, all others float32.

        Args:
            progress: Is called with the bytes that are read and their total.

        Raises:
            BadWeights: A file is damaged or holds NaN or infinity.
            ShapeMismatch: A tensor is missing, unknown or has a wrong shape.
            ShrinkcError: The model is not ``whole``.
        """
        if self._load is None:
            adapter = self.adapter if self.adapter_given else None
            return open_checkpoint(self.path, adapter, whole=True).load(progress)
        with _reading(self.path):
            model = self._load(progress)
            if self.adapter is not None:
                load_adapter(self.adapter, model)
            return model


def open_checkpoint(path: Path, adapter: Path | None = None, *, whole: bool = False) -> Checkpoint:
    """Read configuration, tokenizer and headers, and check everything that needs no values.

    Unless ``whole`` is set, a ``config.json`` or a directory without weights is enough, and the tokenizer may be
    missing.  ``adapter`` replaces the adapter of a GPTQModel directory.  Raises ModelNotFound, BadConfig (also for
    a directory with two adapters),
    UnsupportedModel, BadTokenizer, BadWeights or ShapeMismatch; each names every problem of its kind.
    """
    path = Path(path)
    with _reading(path):
        return _open(path, None if adapter is None else Path(adapter), whole)


def load_model(
    path: Path, adapter: Path | None = None, progress: Progress | None = None
) -> FloatModel:
    """Read a Hugging Face or GPTQModel directory or a ``.gguf`` file, and a LoRA if given.

    Quantised matrices become QuantizedWeights.  ``adapter`` replaces the adapter of a GPTQModel
    directory.  ``progress`` is called with bytes read and total bytes.  Raises the errors of
    :func:`open_checkpoint`.
    """
    return open_checkpoint(path, adapter, whole=True).load(progress)


def load_config(path: Path) -> LlamaConfig:
    """Return the ``FloatModel.config`` of :func:`load_model`, without reading weights.

    Raises ModelNotFound, BadConfig, UnsupportedModel, or BadWeights (a damaged GGUF file).
    """
    return _Source.of(Path(path)).config


@dataclass(frozen=True)
class _Source:
    """Configuration of ``path``.  ``gptq`` is set for a GPTQ directory, ``file`` for a GGUF file."""

    path: Path
    config: LlamaConfig
    gptq: GptqConfig | None = None
    file: GgufFile | None = None

    @classmethod
    def of(cls, path: Path) -> _Source:
        if path.is_file() and path.suffix.lower() == ".gguf":
            file = GgufFile(path)
            return cls(path, gguf_config(file), file=file)
        check_directory(path)
        raw, generation = read_config(path)
        # first, so that another method is refused before other problems
        gptq = gptq_config_of(path, raw)
        return cls(path, gptq_llama_config(path, raw, generation), gptq)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise ModelNotFound for an OSError within the context."""
    try:
        yield
    except OSError as error:
        raise ModelNotFound(
            f"{error.filename or path} cannot be read: {error.strerror}.",
            hint="check the path of the model and its rights.",
        ) from error


def _open(path: Path, adapter: Path | None, whole: bool) -> Checkpoint:
    given = adapter is not None
    if not whole and path.is_file() and path.suffix == ".json":
        name, config, integers, notes = _bare(path)
        tokenizer, load, licence = None, None, ""
    else:
        source = _Source.of(path)
        name, config = name_of(path), source.config
        integers, tokenizer, load, notes = _contents(source, whole)
        licence = _license(source)
        if not given and source.gptq is not None:
            adapter = find_adapter(path)
    found = integers.formats or None
    ranks = {} if adapter is None else adapter_ranks(adapter, config, found or {})
    return Checkpoint(
        path, name, config, found, tokenizer, adapter, given, ranks, tuple(notes), load,
        permuted=integers.permuted, license=licence,
    )  # fmt: skip


def stated_license(path: Path) -> str:
    """Return the licence that a model's files state, as in :class:`Checkpoint`."""
    path = Path(path)
    with _reading(path):
        return _license(_Source.of(path))


def _license(source: _Source) -> str:
    """Return ``general.license`` of a GGUF file, or ``license`` at the head of a directory's README.md."""
    if source.file is not None:
        return str(source.file.metadata.get("general.license", "")).strip()
    card = source.path / "README.md"
    lines = (
        card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []
    )
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return ""
    for line in lines[1 : lines.index("---", 1)]:
        key, _, value = line.partition(":")
        if key == "license":
            return value.strip().strip("\"'")
    return ""


class _Integers(NamedTuple):
    """Fields of :class:`Checkpoint` about quantised matrices."""

    formats: Formats
    permuted: frozenset[str] = frozenset()

    @classmethod
    def by_rules(cls, gptq: GptqConfig, config: LlamaConfig) -> _Integers:
        """Return the fields of a checkpoint without weights."""
        return cls(gptq_formats_by_rules(gptq, config), permuted_by_rules(gptq, config))


def _contents(
    source: _Source, whole: bool
) -> tuple[_Integers, Tokenizer | None, _Load | None, list[str]]:
    """Return quantised matrices, tokenizer, the function that reads the weights, and notes."""
    path, config, load = source.path, source.config, None
    if source.file is not None:
        found = _Integers(gguf_formats(source.file, config))
        tokenizer = load_tokenizer(source.file, config.vocab_size)
        return found, tokenizer, partial(load_gguf, source.file, config, tokenizer), []
    if whole or has_weights(path):
        tokenizer = Tokenizer.from_dir(path, config.vocab_size, config.bos_id)
        if source.gptq is None:
            load = partial(read_hf, path, config, tokenizer, open_hf(path, config))
            return _Integers({}), tokenizer, load, []
        opened = GptqFiles.open(path, config, source.gptq)
        found = _Integers(gptq_formats(opened), opened.permuted())
        return found, tokenizer, partial(load_gptq, opened, tokenizer), []
    notes = [_NO_WEIGHTS.format(path)]
    rules = _Integers({})
    if source.gptq is not None:
        rules = _Integers.by_rules(source.gptq, config)
        notes.append(_NO_INTEGERS)
    if not has_tokenizer(path):
        return rules, None, None, [*notes, _NO_TOKENIZER.format(path)]
    return rules, Tokenizer.from_dir(path, config.vocab_size, config.bos_id), None, notes


def _bare(path: Path) -> tuple[str, LlamaConfig, _Integers, list[str]]:
    """Return name, configuration, quantised matrices and notes of a configuration file alone."""
    raw = read_json_object(path, BadConfig)
    section = raw.pop("quantization_config", None)
    config = parse_config(raw, source=str(path))
    notes, found = [f"only {path} was read; there are no weights to check"], _Integers({})
    if section is not None:
        gptq = parse_gptq_config(section, f"{path}: quantization_config")
        found = _Integers.by_rules(gptq, config)
        notes.append(_NO_INTEGERS)
    name = name_of(path.parent if path.name == "config.json" else path.with_suffix(""))
    return name, config, found, [*notes, _NO_TOKENIZER.format(path)]


_NO_WEIGHTS = "{} holds no weights; the sizes of config.json could not be checked against them"
_NO_INTEGERS = "all matrices of the layers are taken as quantised, as the configuration's rules say"
_NO_TOKENIZER = "{} comes without a tokenizer.json"
