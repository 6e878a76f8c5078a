"""Import a Hugging Face LLaMA checkpoint: config, weights, tokenizer, optional LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadWeights, ModelNotFound, ShapeMismatch
from shrinkc.importer.config import load_config
from shrinkc.importer.lora import load_adapter
from shrinkc.importer.model import FloatLayer, FloatModel, LlamaConfig
from shrinkc.importer.safetensors_file import FLOAT_DTYPES
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.importer.weight_checks import listing, non_finite
from shrinkc.importer.weight_files import WeightFiles, open_weights

Progress = Callable[[int, int], None]

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_FINAL_NORM = "model.norm.weight"
# buffers that old versions of transformers saved; they follow from the config
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


def load_hf(
    path: Path, adapter: Path | None = None, progress: Progress | None = None
) -> FloatModel:
    """Read the checkpoint directory ``path``, and the PEFT LoRA directory ``adapter`` if given.

    ``progress(done, total)`` is called with bytes of tensor data.  All weights are float32.
    Raises ModelNotFound, BadConfig, UnsupportedModel, BadTokenizer, BadWeights or
    ShapeMismatch; each names every problem of its kind.
    """
    path = Path(path)
    _check_directory(path)
    config = load_config(path)
    tokenizer = Tokenizer.from_dir(path, config.vocab_size, config.bos_id)
    weights = open_weights(path)
    _check_names_and_shapes(path, weights, config)
    _check_dtypes(path, weights, config)
    tensors = _read_all(path, weights, config, progress)
    model = _assemble(path, config, tensors, tokenizer)
    if adapter is not None:
        load_adapter(Path(adapter), model)
    return model


def layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of one layer, by its name within the layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows = config.num_heads * config.head_dim
    kv_rows = config.num_kv_heads * config.head_dim
    return {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_rows, hidden),
        "self_attn.k_proj.weight": (kv_rows, hidden),
        "self_attn.v_proj.weight": (kv_rows, hidden),
        "self_attn.o_proj.weight": (hidden, q_rows),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor that ``config`` asks for."""
    shapes: dict[str, tuple[int, ...]] = {_EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        for name, shape in layer_shapes(config).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes[_FINAL_NORM] = (config.hidden_size,)
    if not config.tie_embeddings:
        shapes[_HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def _check_directory(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist.", hint="check the path of the model.")
    hint = "give the directory of a Hugging Face checkpoint."
    if path.suffix == ".bin":
        hint = "a llama2.c checkpoint has to be converted to a Hugging Face directory first."
    elif path.suffix == ".gguf":
        hint = "GGUF files are not imported; use the safetensors version of the model."
    raise ModelNotFound(f"{path} is a file, not a model directory.", hint=hint)


def _wanted(weights: WeightFiles, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    shapes = expected_shapes(config)
    if config.tie_embeddings and _HEAD in weights:
        # some tools save the tied head as well; _assemble checks that it says the same
        shapes[_HEAD] = shapes[_EMBEDDING]
    return shapes


def _check_names_and_shapes(path: Path, weights: WeightFiles, config: LlamaConfig) -> None:
    wanted = _wanted(weights, config)
    faults: list[str] = []
    for name, shape in wanted.items():
        if name not in weights:
            faults.append(f"missing {name} {list(shape)}")
        elif weights.entry(name).shape != shape:
            have = list(weights.entry(name).shape)
            faults.append(f"{name} is {have}, the config says {list(shape)}")
    faults += [
        f"unexpected {name} {list(weights.entry(name).shape)}"
        for name in weights
        if name not in wanted and not name.endswith(_IGNORED_SUFFIX)
    ]
    if faults:
        hint = "config.json and the weight files have to come from the same model."
        if any("lora_" in fault for fault in faults):
            hint = "this looks like a LoRA adapter; give it beside its base model."
        elif faults == [f"missing {_HEAD} {[config.vocab_size, config.hidden_size]}"]:
            hint = "if the model has no own head, set tie_word_embeddings to true in config.json."
        raise ShapeMismatch(f"{path}: {listing(faults)}.", hint=hint)


def _check_dtypes(path: Path, weights: WeightFiles, config: LlamaConfig) -> None:
    faults = [
        f"{name} is {weights.entry(name).dtype}"
        for name in _wanted(weights, config)
        if weights.entry(name).dtype not in FLOAT_DTYPES
    ]
    if faults:
        raise BadWeights(
            f"{path}: {listing(faults)}; {', '.join(FLOAT_DTYPES)} are supported.",
            hint="quantised checkpoints are not imported yet; use the float version.",
        )


def _read_all(
    path: Path, weights: WeightFiles, config: LlamaConfig, progress: Progress | None
) -> dict[str, NDArray[np.float32]]:
    wanted = _wanted(weights, config)
    total = sum(weights.entry(name).nbytes for name in wanted)
    done = 0
    tensors: dict[str, NDArray[np.float32]] = {}
    faults: list[str] = []
    for name in wanted:
        tensors[name] = weights.read(name)
        fault = non_finite(name, tensors[name])
        if fault:
            faults.append(fault)
        done += weights.entry(name).nbytes
        if progress is not None:
            progress(done, total)
    if faults:
        raise BadWeights(
            f"{path}: {listing(faults)}.", hint="the checkpoint is damaged or training diverged."
        )
    return tensors


def _assemble(
    path: Path,
    config: LlamaConfig,
    tensors: dict[str, NDArray[np.float32]],
    tokenizer: Tokenizer,
) -> FloatModel:
    head = tensors.get(_HEAD)
    if config.tie_embeddings and head is not None:
        differing = int(np.count_nonzero(head != tensors[_EMBEDDING]))
        if differing:
            raise ShapeMismatch(
                f"{path}: tie_word_embeddings is true, but {_HEAD} and {_EMBEDDING} differ in "
                f"{differing} of {head.size} values.",
                hint="set tie_word_embeddings to false in config.json if the model was trained "
                f"with its own head, or remove {_HEAD}.",
            )
        head = None

    def layer(index: int) -> FloatLayer:
        prefix = f"model.layers.{index}."
        return FloatLayer(
            attn_norm=tensors[prefix + "input_layernorm.weight"],
            wq=tensors[prefix + "self_attn.q_proj.weight"],
            wk=tensors[prefix + "self_attn.k_proj.weight"],
            wv=tensors[prefix + "self_attn.v_proj.weight"],
            wo=tensors[prefix + "self_attn.o_proj.weight"],
            mlp_norm=tensors[prefix + "post_attention_layernorm.weight"],
            w_gate=tensors[prefix + "mlp.gate_proj.weight"],
            w_up=tensors[prefix + "mlp.up_proj.weight"],
            w_down=tensors[prefix + "mlp.down_proj.weight"],
        )

    return FloatModel(
        config=config,
        embedding=tensors[_EMBEDDING],
        layers=[layer(index) for index in range(config.num_layers)],
        final_norm=tensors[_FINAL_NORM],
        head=head,
        tokenizer=tokenizer,
        # the name only: it ends up in generated files, which hold no absolute paths
        source=path.resolve().name,
    )
