"""The child process of ``gptq`` and stages after it; only this module runs GPTQModel.

It reads one request (:func:`shrinkc.compression.child.receive`) and writes into the directory ``out`` of the request.
Its output is the stage's log.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shrinkc.compression.child import receive
from shrinkc.core.errors import StageFailed

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
_HALF_MAX = 65504.0
# For 4 bit on a CPU, GPTQModel takes a kernel of torch that supports these group sizes only.  For other group sizes,
# the checkpoint names a kernel that supports all.
_CPU_GROUPS = (32, 64, 128, 256)
_EVERY_GROUP = "gptq_torch"
# AutoRound's data types by symmetry; its default symmetric one has negative scales, which no engine supports
_GRIDS = {True: "int_sym_gptq", False: "int"}
CHECKED_TOKENS = 32
CHECKED_ERROR = 0.02


def quantize(request: dict[str, Any]) -> None:
    """Quantise all matrices of the layers with GPTQ or AutoRound, and embedding and LM head if requested.

    Writes a reproducible GPTQModel checkpoint to ``out``, with floats as float16 and the unchanged tokenizer of
    ``source``; packed, if embedding and LM head are quantised.  Then :func:`check` compares it with GPTQModel.
    """
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import GPTAQConfig

    from shrinkc.checkpoints import pack_step, torch_dtype

    source, out, scratch = (Path(request[key]) for key in ("source", "out", "scratch"))
    windows = np.load(request["calibration"])
    start = source
    if request["embeddings"]["bits"] < 16:
        start = scratch / "embeddings"
        embeddings = _quantize_embeddings(request, windows, start)
    config = QuantizeConfig(
        bits=request["bits"],
        group_size=request["group_size"],
        sym=request["sym"],
        desc_act=request["desc_act"],
        act_group_aware=request["act_group_aware"],
        damp_percent=request["damp"],
        mse=request["mse"],
        gptaq=GPTAQConfig(alpha=request["gptaq"]) if request["gptaq"] else None,
        dynamic=request["dynamic"] or None,
        offload_to_disk=False,
        pack_impl="original",
        device=request["device"],
    )
    saved = scratch / "saved"
    shutil.rmtree(saved, ignore_errors=True)  # from an interrupted attempt
    if request["method"] == "autoround":
        saved = _round_trained(request, windows, start, saved, config)
    else:
        model = GPTQModel.load(str(start), config, dtype=torch_dtype(request["dtype"]))
        give_own_positions(model.model)
        with token_weighted_hessians(model.model):
            model.quantize(_samples(windows), batch_size=1, calibration_data_min_length=2)
        model.save(str(saved))
        del model
    out.mkdir(parents=True, exist_ok=True)
    _assemble(source, saved, out)
    if start != source:
        pack_step(out, embeddings)
    check(out)


@contextmanager
def token_weighted_hessians(model: Any) -> Iterator[None]:
    """Make GPTQModel weight every token by :func:`~shrinkc.compression.blocks.writer_weights` within the context, for
    matrices that write to the residual stream.

    GPTQModel has no token weights, so its inputs (of the quantised and of the float model) are multiplied by their
    roots.  Raises StageFailed at the end if it skipped a matrix.
    """
    from gptqmodel.quantization.gptaq import GPTAQ
    from gptqmodel.quantization.gptq import GPTQ

    from shrinkc.checkpoints import family_of_torch
    from shrinkc.compression.blocks import writer_weights

    family = family_of_torch(model)
    after: dict[str, Any] = {}  # writer -> the norm of its output, or None
    stream: dict[str, Any] = {}  # writer -> the stream that it adds to, for the current window
    waiting: set[str] = set()
    handles = []
    for index, layer in enumerate(model.model.layers):
        for norm, (writer, norm_after) in zip(family.readers, family.writers.items(), strict=True):
            name = f"model.layers.{index}.{writer}"
            after[name] = None if norm_after is None else layer.get_submodule(norm_after)

            def see(module: Any, given: tuple[Any, ...], name: str = name) -> None:
                stream[name] = given[0]

            handles.append(layer.get_submodule(norm).register_forward_pre_hook(see))
            waiting.add(name)

    def weighted(add: Any) -> Any:
        def add_batch(self: Any, inp: Any, out: Any, batch_index: Any = None) -> None:
            name = self._named_module.full_name
            if name in stream:
                waiting.discard(name)
                before = stream[name]
                # in float32: squares overflow float16
                made = out.float().view_as(before)
                roots = writer_weights(before.float(), made, after[name]).sqrt()
                inp = inp.float() * roots.view(*inp.shape[:-1], 1)
                if isinstance(self, GPTAQ):
                    floats = self.native_inps[0].float()
                    self.native_inps[0] = floats * roots.view(*floats.shape[:-1], 1)
            add(self, inp, out, batch_index)

        return add_batch

    originals = {kind: kind.add_batch for kind in (GPTQ, GPTAQ)}
    for kind, add in originals.items():
        kind.add_batch = weighted(add)
    try:
        yield
    finally:
        for kind, add in originals.items():
            kind.add_batch = add
        for handle in handles:
            handle.remove()
    if waiting:
        raise StageFailed(
            f"GPTQModel gathered nothing of {len(waiting)} matrices, the first is {min(waiting)}.",
            "this is a defect; please report it with the version of gptqmodel.",
        )


def give_own_positions(model: Any) -> None:
    """Make each layer of ``model`` use the RoPE tables and the attention mask of its own kind, whatever it is given.

    GPTQModel (7.6) and AutoRound (0.16) run layers one by one and give each what they saw at the first one, which is
    wrong for a model with local and global layers."""
    from shrinkc.compression.blocks import Positions, positions

    if len(set(getattr(model.config, "layer_types", None) or [])) < 2:
        return
    made: dict[int, Positions] = {}

    def replace(
        layer: Any, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = given[0] if given else named["hidden_states"]
        length, kind = hidden.shape[1], layer.self_attn.layer_type
        if length not in made:
            made[length] = positions(model, length)
        cos_sin = tuple(table.to(hidden.dtype) for table in made[length].cos_sin[kind])
        named |= {"position_embeddings": cos_sin, "attention_mask": made[length].masks[kind]}
        return given, named

    for layer in model.model.layers:
        layer.register_forward_pre_hook(replace, with_kwargs=True)


@contextmanager
def own_positions_on_load() -> Iterator[None]:
    """Call :func:`give_own_positions` for every model that GPTQModel loads within the context."""
    from gptqmodel import GPTQModel

    load = GPTQModel.load

    def load_and_give(*given: Any, **named: Any) -> Any:
        loaded = load(*given, **named)
        give_own_positions(loaded.model)
        return loaded

    GPTQModel.load = load_and_give
    try:
        yield
    finally:
        GPTQModel.load = load


def _round_trained(
    request: dict[str, Any], windows: np.ndarray, start: Path, saved: Path, config: Any
) -> Path:
    """Quantise ``start`` with AutoRound into a folder below ``saved``, with GPTQModel's description of the formats in
    ``config``."""
    from importlib.metadata import version

    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    give_own_positions(model)
    AutoRound(
        model,
        AutoTokenizer.from_pretrained(start, local_files_only=True),
        bits=request["bits"],
        group_size=request["group_size"],
        sym=request["sym"],
        data_type=_GRIDS[request["sym"]],
        layer_config={
            name: {
                "bits": own["bits"],
                "group_size": own["group_size"],
                "sym": own["sym"],
                "data_type": _GRIDS[own["sym"]],
            }
            for name, own in request["differing"].items()
        },
        iters=request["iterations"],
        batch_size=min(request["batch"], len(windows)),
        nsamples=len(windows),
        seqlen=windows.shape[1],
        dataset=_samples(windows),
        seed=request["seed"],
        device_map=request["device"],
        amp=request["mixed"],
        enable_torch_compile=False,
    ).quantize_and_save(str(saved), format="auto_gptq")
    (file,) = saved.rglob("config.json")
    fields = json.loads(file.read_text())
    stated = config.to_dict() | {"quant_method": "gptq"}
    # GPTQModel interprets zero points according to the writer; AutoRound stores them like GPTQModel
    writers = ("gptqmodel", "auto-round")
    stated["meta"] = {"quantizer": [f"{name}:{version(name)}" for name in writers]}
    _write_json(file, fields | {"quantization_config": stated})
    return file.parent


def _samples(windows: np.ndarray) -> list[dict[str, Any]]:
    import torch

    ids = torch.from_numpy(windows)
    return [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]


def _quantize_embeddings(
    request: dict[str, Any], windows: np.ndarray, start: Path
) -> dict[str, Any]:
    """Save the source with quantised embedding and LM head into ``start``; return file -> QuantizedWeight.

    The layers are quantised afterwards, with inputs from the quantised embedding.
    """
    import torch

    from shrinkc.checkpoints import load
    from shrinkc.compression.embedding import quantize_embeddings

    loaded = load(Path(request["source"]), device=request["device"])
    model = loaded.model
    bits, group_size = request["embeddings"]["bits"], request["embeddings"]["group_size"]
    embeddings = quantize_embeddings(
        model, torch.from_numpy(windows), bits=bits, group_size=group_size
    )
    with torch.no_grad():
        # the values of the sidecars in float16, like the float copies in the directory
        for module, matrix in zip(
            (model.get_input_embeddings(), model.get_output_embeddings()),
            embeddings.values(),
            strict=False,  # one matrix if tied
        ):
            module.weight.copy_(torch.from_numpy(matrix.dequantized()).half())
    shutil.rmtree(start, ignore_errors=True)
    model.save_pretrained(start)
    for name in COPIED:
        if (Path(request["source"]) / name).is_file():
            shutil.copyfile(Path(request["source"]) / name, start / name)
    return embeddings


def _assemble(source: Path, saved: Path, out: Path) -> None:
    """Write ``out`` with the integers and scales that GPTQModel saved, and other floats as float16.

    Configuration and tokenizer are copied from the source, because GPTQModel changes the padding token.  If not all
    kernels support the group size, the configuration names one that does, so that ``from_pretrained`` works.
    """
    import torch
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = {}
    for file in sorted(saved.glob("*.safetensors")):
        tensors.update(load_file(file))
    for name, value in tensors.items():
        if value.dtype in (torch.float32, torch.bfloat16):
            if value.abs().max() > _HALF_MAX:
                raise StageFailed(f"{name} holds values that float16 cannot: beyond {_HALF_MAX}.")
            tensors[name] = value.half()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    fields = json.loads((source / "config.json").read_text())
    quantization = json.loads((saved / "config.json").read_text())["quantization_config"]
    if quantization["bits"] == 4 and quantization["group_size"] not in _CPU_GROUPS:
        quantization["backend"] = _EVERY_GROUP
    fields.pop("torch_dtype", None)
    fields |= {"dtype": "float16", "quantization_config": quantization}
    _write_json(out / "config.json", fields)
    _write_json(out / "quantize_config.json", quantization)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    readable = (out / "config.json").stat().st_mode
    # safetensors writes files that only their owner can read
    (out / "model.safetensors").chmod(readable)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def check_request(request: dict[str, Any]) -> None:
    """Perform the task "check": run :func:`check` on the directory ``out``."""
    check(Path(request["out"]))


def check(directory: Path) -> None:
    """Raise StageFailed unless ``from_pretrained`` loads ``directory`` with the weights that shrinkc reads.

    Uses transformers, or GPTQModel if formats differ between modules, which transformers (5.14) cannot load.  Of a
    packed step, they load its standard GPTQ checkpoint.
    """
    import torch

    from shrinkc.importer.gptq import read_gptq

    with standard(directory) as checkpoint:
        model = load_quantized(checkpoint)
    weights = read_gptq(directory)
    wrong = []
    for name, weight in weights.items():
        module = model.get_submodule(name)
        # GPTQModel dequantises in float16, [inputs, outputs]; an embedding has float weights
        kernel = module.dequantize_weight().T if hasattr(module, "qweight") else module.weight
        exact = torch.from_numpy(weight.dequantized())
        if not torch.equal(kernel.detach().half(), exact.half()):
            wrong.append(name)
    if wrong or not weights:
        raise StageFailed(
            f"{directory}: {len(wrong)} of {len(weights)} matrices differ between GPTQModel and "
            f"shrinkc's reader, the first is {wrong[:1]}.",
            "this is a defect; please report it with the version of gptqmodel.",
        )
    with torch.no_grad():
        logits = model(torch.arange(8)[None] % model.config.vocab_size).logits
    if not torch.isfinite(logits).all():
        raise StageFailed(f"{directory}: the quantised model's logits are not finite.")


@contextmanager
def standard(directory: Path) -> Iterator[Path]:
    """Yield ``directory`` itself, or a temporary standard checkpoint of a packed step, which is removed in the end."""
    from shrinkc.checkpoints import is_packed, write_gptq

    if not is_packed(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(
        prefix=".gptq-", suffix=".partial", dir=directory.parent
    ) as folder:
        write_gptq(directory, Path(folder))
        yield Path(folder)


def load_quantized(directory: Path) -> Any:
    """Load a quantised directory with GPTQModel's kernels."""
    import torch

    quantization = json.loads((directory / "config.json").read_text())["quantization_config"]
    if quantization.get("dynamic"):
        from gptqmodel import BACKEND, GPTQModel

        loaded = GPTQModel.load(str(directory), backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
        return loaded.model
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def compensate(request: dict[str, Any]) -> None:
    """Perform EoRA: write the adapter for ``source`` that approximates the model ``float`` to ``out``.

    Then compare GPTQModel's forward pass with the adapter to the model that shrinkc loads (:func:`check_adapter`).
    """
    from gptqmodel import GPTQModel
    from gptqmodel.adapter.adapter import Lora

    out = Path(request["out"])
    with standard(Path(request["source"])) as source, own_positions_on_load():
        GPTQModel.adapter.generate(
            adapter=Lora(rank=request["rank"], path=str(out)),
            model_id_or_path=request["float"],
            quantized_model_id_or_path=str(source),
            calibration_dataset=_samples(np.load(request["calibration"])),
            calibration_dataset_sort="desc",
            batch_size=1,
            device=request["device"],
        )
    config = out / "adapter_config.json"
    fields = json.loads(config.read_text())
    fields["base_model_name_or_path"] = None  # it was a path of this machine
    # it was a set, which has no fixed order
    fields["target_modules"] = sorted(fields["target_modules"])
    _write_json(config, fields)
    (out / "adapter_model.safetensors").chmod(config.stat().st_mode)
    check_adapter(Path(request["source"]), out, request["rank"])


def check_adapter(source: Path, adapter: Path, rank: int) -> None:
    """Raise StageFailed unless shrinkc's model of ``source`` with ``adapter`` equals GPTQModel's."""
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.adapter.adapter import Lora

    from shrinkc.checkpoints import load

    with standard(source) as checkpoint:
        theirs = GPTQModel.load(
            str(checkpoint),
            adapter=Lora(rank=rank, path=str(adapter)),
            backend=BACKEND.GPTQ_TORCH,
            dtype=torch.float16,
        )
    ours = load(adapter).model
    ids = torch.arange(CHECKED_TOKENS)[None] % ours.config.vocab_size
    with torch.no_grad():
        wanted, found = theirs.model(ids).logits.float(), ours(ids).logits
        plain = load(source).model(ids).logits
    # float16 and float32 differ by a few percent in a deep model, far less than the adapter's effect
    error, effect = (float((found - other).norm() / wanted.norm()) for other in (wanted, plain))
    if not error < max(CHECKED_ERROR, effect / 4):
        raise StageFailed(
            f"{adapter}: logits of shrinkc's model differ from GPTQModel's by {error:.1%}, more "
            f"than {CHECKED_ERROR:.1%} and a quarter of the adapter's effect, {effect:.1%}.",
            "this is a defect; please report it with the version of gptqmodel.",
        )


def perform(request: dict[str, Any]) -> None:
    """Perform the ``task`` of a request with its ``threads`` and ``seed``."""
    import torch

    torch.set_num_threads(request["threads"])
    random.seed(request["seed"])
    np.random.seed(request["seed"])
    torch.manual_seed(request["seed"])
    tasks = {"gptq": quantize, "eora": compensate, "check": check_request}
    tasks[request["task"]](request)


if __name__ == "__main__":
    perform(receive())
