"""Loading of Hugging Face directories, GGUF files and GPTQModel directories as torch models."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shrinkc.checkpoints.libraries import need, quiet
from shrinkc.core.errors import (
    BadTokenizer,
    BadWeights,
    ModelNotFound,
    ShapeMismatch,
    ShrinkcError,
    UnsupportedModel,
    UsageError,
)
from shrinkc.core.shell import is_text
from shrinkc.importer.config import read_config
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.gguf_tokenizer import special_ids
from shrinkc.importer.gptq_config import PACKED_METHOD
from shrinkc.model import FAMILIES, SUPPORTED, Family, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = "sdpa"  # applies a causal mask if a layer is called without one
DTYPES = ("float32", "bfloat16", "float16")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.model", "*.jinja", "*.txt"]
_HUB_WEIGHTS = ["*.safetensors"]
_INDEX = "*.index.json"  # of weights in several files


@dataclass
class Loaded:
    """A float model in evaluation mode with its tokenizer.

    ``kind``: "hf", "gguf" or "gptq".  The weights of "gptq" are dequantised exactly from the checkpoint's integers,
    scales and low-rank adapter.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: Path
    kind: str


def torch_dtype(name: str) -> Any:
    """Return the torch dtype called ``name``, one of DTYPES; otherwise raise ValueError."""
    import torch

    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}; {', '.join(DTYPES)} are supported")
    return getattr(torch, name)


def resolve(source: str) -> Path:
    """Return the local directory or .gguf file of the model ``source``.

    An existing path is returned unchanged, except that a folder with one .gguf file as its only model means that
    file.  Any other ``source`` is fetched from the Hugging Face hub or its cache.  Raises ModelNotFound, and
    UsageError for a path that is not UTF-8, which safetensors and transformers do not accept.
    """
    path = Path(source)
    if path.exists() and not is_text(source):
        raise UsageError(
            f"{source}: the libraries that read models take names in UTF-8 only.",
            "rename it, or give a symbolic link to it.",
        )
    if path.is_dir():
        _refuse_run(path)
        files = sorted(path.glob("*.gguf"))
        return files[0] if len(files) == 1 and not (path / "config.json").exists() else path
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise ModelNotFound(
            f"{source} is a file, not a model directory.",
            "give a Hugging Face directory, a .gguf file, or the id of a model on the hub.",
        )
    if not _HUB_ID.fullmatch(source) or path.suffix == ".gguf":
        raise ModelNotFound(f"{source} does not exist.", "check the path of the model.")
    return _from_hub(source)


def located(model: Path, *, weights: bool) -> Path:
    """Return the local path of ``model``; an id of the hub with its owner is fetched.

    Without ``weights``, only configuration and tokenizer are fetched.  Any other path is returned unchanged, to be
    checked by its reader.  Raises ModelNotFound for the directory of a compression run, and if the hub does not
    have the model.
    """
    name = os.fspath(model)
    if os.path.isdir(model):  # Path.is_dir() raises for some names
        _refuse_run(model)
    here = os.path.exists(model)
    if here or "/" not in name or not _HUB_ID.fullmatch(name) or model.suffix == ".gguf":
        return model
    if find_spec("huggingface_hub") is None:
        raise ModelNotFound(
            f"{name} does not exist.",
            'check the path of the model; ids of the hub need: pip install ".[compress]" in a checkout.',
        )
    return _from_hub(name, weights=weights)


def _refuse_run(path: Path) -> None:
    """Raise ModelNotFound for the directory of a compression run: its steps are the models."""
    steps = sorted(path.glob("[0-9][0-9]-*/step.json"))
    if steps and not (path / "config.json").exists():
        raise ModelNotFound(
            f"{path} is a run of 'shrinkc compress', not a model.",
            f"give one of its steps, such as {steps[-1].parent}.",
        )


def _from_hub(name: str, *, weights: bool = True) -> Path:
    need("huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        if weights:
            return Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, *_HUB_WEIGHTS]))
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=[_INDEX]))
    except Exception as error:  # any error of the network or the hub
        first = str(error).strip().split("\n")[0]
        raise ModelNotFound(
            f"{name} is no local directory, and the Hugging Face hub does not give it: {first}",
            "check the spelling, log in with 'hf auth login' for a gated model, or fetch "
            "the model elsewhere and give its directory.",
        ) from error


def kind_of(path: Path) -> str:
    """Return "gguf", "gptq" or "hf", for a model of one of FAMILIES.

    Raises ModelNotFound, BadConfig, and UnsupportedModel for another architecture or quantisation method.  The
    architecture of a GGUF file is checked when it is loaded.
    """
    if path.suffix == ".gguf":
        return "gguf"
    config = read_config(path)[0]
    _check_family(path, config.get("model_type"))
    quantization = config.get("quantization_config")
    if quantization is None:
        return "hf"
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method not in ("gptq", PACKED_METHOD):
        raise UnsupportedModel(
            f"{path}: quantization_config.quant_method = {method!r}; 'gptq' is supported.",
            "use the float version of the model.",
        )
    return "gptq"


def _check_family(path: Path, found: object) -> None:
    if found not in FAMILIES:
        raise UnsupportedModel(
            f"{path}: model_type = {found!r}; {', '.join(FAMILIES)} can be loaded.",
            "give a model of a supported family.",
        )


def family_of_torch(model: Any) -> Family:
    """Return the family of a model of transformers."""
    return FAMILIES[model.config.model_type]


def load(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
) -> Loaded:
    """Load ``source`` (see :func:`resolve`) with weights in ``dtype`` (see DTYPES).

    Raises ExtraMissing, ModelNotFound, BadConfig, UnsupportedModel, BadWeights, ShapeMismatch, BadTokenizer.
    """
    quiet()
    path = source if isinstance(source, Path) and source.exists() else resolve(str(source))
    kind = kind_of(path)
    if kind == "gptq":
        model = _load_gptq(path, dtype)
    elif kind == "gguf":
        model = _load_gguf(path, dtype)
    else:
        model = _load_hf(path, dtype)
    model.requires_grad_(False)
    return Loaded(model.to(device).eval(), load_tokenizer(path), path, kind)


def _load_hf(path: Path, dtype: str) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not list(path.glob("*.safetensors")) and not list(path.glob("*.bin")):
        raise ModelNotFound(f"{path} has no weights (*.safetensors).", "copy the model again.")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch_dtype(dtype),
            attn_implementation=ATTENTION,
            output_loading_info=True,
            local_files_only=True,
        )
    except (SafetensorError, OSError, EOFError) as error:
        raise BadWeights(f"{path}: {_first_line(error)}", "copy the model again.") from error
    except (RuntimeError, ValueError) as error:
        raise ShapeMismatch(f"{path}: {_first_line(error)}") from error
    wrong = [
        f"{problem.split('_')[0]} {', '.join(sorted(map(str, info[problem]))[:5])}"
        for problem in ("missing_keys", "mismatched_keys", "unexpected_keys")
        if info.get(problem)
    ]
    if wrong:
        raise ShapeMismatch(
            f"{path}: {'; '.join(wrong)}.",
            "config.json and the weight files have to come from the same model.",
        )
    return model


def _load_gguf(path: Path, dtype: str) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:
        raise UnsupportedModel(
            f"{path}: {_first_line(error)}",
            f"GGUF files of these families can be loaded: {SUPPORTED}.",
        ) from error
    _check_family(path, config.model_type)
    try:
        with redirect_stderr(StringIO()):  # its progress bar cannot be switched off
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                dtype=torch_dtype(dtype),
                attn_implementation=ATTENTION,
                quantization_config=GgufConfig(dequantize=True),
            )
    except Exception as error:
        raise BadWeights(f"{path}: {_first_line(error)}", "copy the file again.") from error
    with suppress(ShrinkcError):  # a file that only transformers can read
        _, ends = special_ids(GgufFile(path))  # transformers knows the first of them
        model.generation_config.eos_token_id = ends or None
    return model


def _load_gptq(path: Path, dtype: str) -> PreTrainedModel:
    """Load a GPTQ directory as a float model with the exact dequantised weights, which is fast on a CPU."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from shrinkc.importer import load_model
    from shrinkc.importer.model import dense

    float_model = load_model(path)  # with the adapter that comes with it
    fields = {k: v for k, v in read_config(path)[0].items() if k != "quantization_config"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**fields), attn_implementation=ATTENTION
        )
    family = family_of(float_model.config)
    offset = family.norm_offset
    state = {
        "model.embed_tokens.weight": dense(float_model.embedding),
        "model.norm.weight": float_model.final_norm - offset,
    }
    head = float_model.head
    state["lm_head.weight"] = state["model.embed_tokens.weight"] if head is None else dense(head)
    for index, layer in enumerate(float_model.layers):
        prefix = f"model.layers.{index}."
        for norm in family.norms:
            state[f"{prefix}{norm.name}.weight"] = getattr(layer, norm.field) - offset
        for module in family.modules:
            value = dense(getattr(layer, module.field))
            adapter = layer.adapters.get(module.short)
            state[f"{prefix}{module.name}.weight"] = (
                value if adapter is None else value + adapter.b @ adapter.a
            )
            if module.short in layer.biases:
                state[f"{prefix}{module.name}.bias"] = layer.biases[module.short]
    tensors = {name: torch.tensor(value, dtype=torch_dtype(dtype)) for name, value in state.items()}
    model.to_empty(device="cpu")
    model.to(torch_dtype(dtype))
    # RoPE's tables are not in the checkpoint, and those on the device "meta" have no values
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    if family.embedding_scaled:
        model.model.embed_tokens.embed_scale.fill_(float_model.config.hidden_size**0.5)
    model.load_state_dict(tensors, strict=True)
    model.tie_weights()
    return model


def stored_dtype(path: Path) -> str:
    """Return the dtype (see DTYPES) of most weights of a directory; float32 for a GGUF file."""
    from safetensors import safe_open

    if path.suffix == ".gguf":
        return "float32"
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found: Counter[str] = Counter()
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is no dict
                part = tensors.get_slice(key)
                found[part.get_dtype()] += math.prod(part.get_shape())
    return names.get(found.most_common(1)[0][0], "float32") if found else "float32"


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a directory or GGUF file.  Raises ExtraMissing, BadTokenizer."""
    quiet()
    from transformers import AutoTokenizer

    try:
        if path.suffix == ".gguf":
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise BadTokenizer(
            f"{path}: the tokenizer cannot be loaded: {_first_line(error)}",
            "tokenizer.json (or tokenizer.model) has to lie beside the weights.",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
