"""What is fuzzed: for every importer valid inputs, how their files are changed, and what reads them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

import shrinkc
from helpers.compressed import sensitivities, write_run
from helpers.layer import MODULES
from helpers.report import run_of
from helpers.tiny_gguf import tiny_gguf
from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_safetensors, write_tiny_llama
from shrinkc.compression.run_directory import BUDGET, FORMAT, RECIPE, RUN, VERSION
from shrinkc.compression.steps import STEP, StepRecord, list_files, write_json, write_step
from shrinkc.core.artifact import MANIFEST, file_record
from shrinkc.core.progress import Silent
from shrinkc.report.compiled import compiled_page
from shrinkc.report.compressed import SENSITIVITY

from .binaries import GGUF, SAFETENSORS
from .blind import Mutator
from .trees import JSON, TOML

# Refusals of any model, by the titles of docs/reference/exit-codes.md: usage, model not found, unsupported model,
# bad config, bad weights, weights and config disagree, bad tokenizer, cannot quantise, does not fit.
MODEL = frozenset({0, 2, 10, 11, 12, 13, 14, 15, 20, 30})

Action = tuple[str, ...]
"""A command line, or ``py:NAME`` and its arguments (see trial.CALLS), in which {in} is the folder of the
input, {good} that of the same files unchanged, and {out} something to make."""

READ: tuple[Action, ...] = (
    ("plan", "{in}/model"),
    ("plan", "{in}/model", "--context", "16", "--target", "host", "--json"),
    ("inspect", "{in}/model"),
    ("py:load", "{in}/model"),
    ("compile", "{in}/model", "-o", "{out}", "--context", "16"),
)


@dataclass(frozen=True)
class Subject:
    """One importer.  ``make`` writes valid inputs, a folder each, below the folder that it is given;
    ``files``: pattern of a path in such a folder -> how it is changed, the first that matches; ``seal``
    brings hashes that an input has of its own files up to date, as somebody would who changed them on
    purpose; ``codes``: the exit codes that its page of refusals allows."""

    name: str
    make: Callable[[Path], None]
    files: Mapping[str, tuple[Mutator, ...]]
    actions: tuple[Action, ...] = READ
    codes: frozenset[int] = MODEL
    seal: Callable[[Path], None] | None = None
    needs: tuple[str, ...] = field(default=())

    def missing(self) -> list[str]:
        """Libraries and programs that it needs and that are not there."""
        return [
            name
            for name in self.needs
            if importlib.util.find_spec(name) is None and shutil.which(name) is None
        ]

    def changeable(self, folder: Path) -> list[str]:
        """The files of an input that are changed, sorted."""
        names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        return sorted(n for n in names if any(fnmatch(n, pattern) for pattern in self.files))

    def mutators(self, name: str) -> tuple[Mutator, ...]:
        """Those of the file ``name``."""
        return next(found for pattern, found in self.files.items() if fnmatch(name, pattern))


SIZES = {"hidden": 8, "intermediate": 8, "layers": 1, "heads": 2, "kv_heads": 1}
FILES = {"model/*.json": JSON, "model/*.safetensors": SAFETENSORS}


def _configs(folder: Path) -> None:
    write_tiny_llama(folder / "llama" / "model", **SIZES)
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    write_tiny_llama(folder / "llama3" / "model", rope_scaling=scaling, **SIZES)
    for family, name in (("mistral", "Mistral"), ("qwen2", "Qwen2")):
        about = {"model_type": family, "architectures": [f"{name}ForCausalLM"]}
        if family == "mistral":
            about["sliding_window"] = 64
        extra = {}
        for part, rows in (
            (("q_proj", 8), ("k_proj", 4), ("v_proj", 4)) if family == "qwen2" else ()
        ):
            extra[f"model.layers.0.self_attn.{part}.bias"] = np.ones(rows, np.float32)
        write_tiny_llama(folder / family / "model", config=about, overrides=extra, **SIZES)
    for path in folder.iterdir():
        (path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))


def _safetensors(folder: Path) -> None:
    write_tiny_llama(folder / "whole" / "model", tied=False, **SIZES)
    write_tiny_llama(folder / "shards" / "model", dtype="bfloat16", shards=2, **SIZES)
    write_tiny_llama(folder / "half" / "model", dtype="float16", **{**SIZES, "layers": 2})


def _gptq(folder: Path) -> None:
    sizes = {"hidden": 32, "intermediate": 32, "layers": 1, "heads": 2, "kv_heads": 2}
    tiny_gptq(folder / "plain" / "model", bits=4, group=32, **sizes)
    tiny_gptq(
        folder / "mixed" / "model", bits=3, group=16, sym=False, desc_act="shared", layout="gptq_v2",
        module_bits={"model.layers.0.mlp.up_proj": 8}, skip=("model.layers.0.self_attn.o_proj",), **sizes,
    )  # fmt: skip
    tiny_gptq(folder / "beside" / "model", embedding_bits=4, eora_rank=2, **sizes)


def _adapter(folder: Path) -> None:
    write_tiny_llama(folder / "lora" / "model", **SIZES)
    adapter = folder / "lora" / "adapter"
    adapter.mkdir()
    modules = ["q_proj", "down_proj"]
    about = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": modules, "bias": "none",
        "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "modules_to_save": None,
        "rank_pattern": {}, "alpha_pattern": {}, "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    tensors = {}
    for module in modules:
        name = f"base_model.model.model.layers.0.{MODULES[module].name}"
        tensors[f"{name}.lora_A.weight"] = np.ones((2, 8), np.float32)
        tensors[f"{name}.lora_B.weight"] = np.ones((8, 2), np.float32)
    write_safetensors(adapter / "adapter_model.safetensors", tensors)


def _gguf(folder: Path) -> None:
    for kind, embedding, tokenizer in (
        ("Q4_1", "Q8_0", "gpt2"),
        ("Q4_0", "F16", "llama"),
        ("BF16", "F32", "gpt2"),
    ):
        place = folder / kind
        place.mkdir(parents=True)
        tiny_gguf(
            place / "model.gguf", kind=kind, embedding_kind=embedding, tokenizer=tokenizer,
            hidden=32, intermediate=32, layers=1, heads=2, kv_heads=1,
        )  # fmt: skip


# type -> (embedding's, inputs: K-quants have blocks of 256)
GGUF_TYPES = {
    "Q2_K": ("Q6_K", 256), "Q3_K": ("Q5_K", 256), "Q4_K": ("Q6_K", 256), "Q5_K": ("Q8_0", 256), "Q6_K": ("Q4_K", 256),
    "Q5_0": ("Q5_1", 32), "Q5_1": ("IQ4_NL", 32), "IQ4_NL": ("Q5_0", 32),
}  # fmt: skip


def _gguf_types(folder: Path) -> None:
    """A file of each type, and one with a type per matrix, as of a Q4_K_M."""
    sizes = {"layers": 1, "heads": 2, "kv_heads": 1}
    for number, (kind, (embedding, inputs)) in enumerate(GGUF_TYPES.items()):
        (folder / kind).mkdir(parents=True)
        tiny_gguf(
            folder / kind / "model.gguf", kind=kind, embedding_kind=embedding, tied=number % 2 == 0,
            tokenizer=("gpt2", "llama")[number % 2], hidden=inputs, intermediate=inputs, **sizes,
        )  # fmt: skip
    (folder / "mixed").mkdir()
    module = "model.layers.0.self_attn."
    tiny_gguf(
        folder / "mixed" / "model.gguf", kind="Q4_K", embedding_kind="Q6_K", pre="qwen2", hidden=256, intermediate=256,
        kinds={f"{module}v_proj": "Q6_K", f"{module}k_proj": "Q5_0", "model.layers.0.mlp.down_proj": "Q6_K"}, **sizes,
    )  # fmt: skip


def _tokenizers(folder: Path) -> None:
    write_tiny_llama(folder / "pieces" / "model", **SIZES)
    write_tiny_llama(folder / "fallback" / "model", vocab=380, **SIZES)
    write_tiny_llama(folder / "bytes" / "model", vocab=270, tokenizer="bytelevel", **SIZES)
    about = {
        "bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "add_bos_token": True,
        "chat_template": "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    }  # fmt: skip
    for path in folder.iterdir():
        (path / "model" / "tokenizer_config.json").write_text(json.dumps(about))


def _recipes(folder: Path) -> None:
    recipes = Path(shrinkc.__file__).parent / "compression" / "recipes"
    for path in sorted(recipes.glob("*.toml")):
        (folder / path.stem).mkdir(parents=True)
        shutil.copy(path, folder / path.stem / "recipe.toml")
    (folder / "budget").mkdir()
    (folder / "budget" / "recipe.toml").write_text(
        '[calibration]\ntext = ["self:20000", "more.txt"]\nsamples = 4\n[budget]\ntarget_bytes = "64 MiB"\n'
        '[evaluate]\ntext = "stories.txt"\nwindows = 2\nsamples = ["Once"]\n'
    )


def _compiled(folder: Path) -> None:
    """Directories whose host program is built already: what is changed is none of its sources."""
    for name, options in (
        ("rows", {"context": 16}),
        ("groups", {"context": 12, "bits": 4, "group_size": 4, "target": "host"}),
    ):
        write_tiny_llama(folder.parent / "of" / name, **SIZES)
        out = folder / name / "out"
        out.parent.mkdir(parents=True)
        shrinkc.compile(folder.parent / "of" / name, output=out, **options)
        shrinkc.run(out, on="host", prompt_ids=[1, 5], tokens=2)


def _seal_compiled(folder: Path) -> None:
    path = folder / "out" / MANIFEST
    content = json.loads(path.read_bytes())
    for name in content["files"]:
        if (folder / "out" / name).is_file():
            content["files"][name] = asdict(file_record(folder / "out" / name))
    path.write_text(json.dumps(content))


def _runs(folder: Path) -> None:
    run = folder / "run"
    for name, stage, size in (("00-source", "source", 2000), ("01-gptq", "gptq", 500)):
        write_tiny_llama(run / name, **SIZES)
        record = StepRecord(
            name=name, stage=stage, seed=0, threads=1, versions={"torch": "2"}, fingerprint={"run.seed": 0},
            settings={"bits": 4}, parameters={}, notes=["a note"],
            figures={
                "layers": 1, "intermediate": 8, "kv_heads": 1, "vocabulary": 107, "parameters": 1000,
                "non_zeros": 990, "bytes_on_disk": 2 * size, "packed_bytes": size,
            },
            seconds=30.5, metrics={"perplexity": {"perplexity": 31.5, "protocol": "wikitext512", "windows": 2}},
        )  # fmt: skip
        record.files = {n: file_record(run / name / n) for n in list_files(run / name)}
        write_step(run / name, record)
    write_json(run / RUN, {"format": FORMAT, "version": VERSION, "model": "tiny"})
    (run / RECIPE).write_text("[gptq]\nbits = 4\n")


def _seal_run(folder: Path) -> None:
    for path in sorted(folder.glob(f"*/{STEP}")):
        content = json.loads(path.read_bytes())
        content["files"] = {
            name: asdict(file_record(path.parent / name)) for name in list_files(path.parent)
        }
        path.write_text(json.dumps(content))


# as `shrinkc eval` writes it
EVALUATION = {
    "model": {"name": "tiny", "kind": "compiled", "dtype": "integer", "engine": "host"},
    "perplexity": {
        "protocol": "wikitext64", "windows": 2, "tokens": 126, "perplexity": 31.5, "perplexity_standard_error": 0.5,
        "predicted_bytes": 300, "bits_per_byte": 2.5,
    },
    "tasks": {
        "hellaswag": {
            "items": 4, "shots": 0, "version": "1.0",
            "metrics": {
                "acc": {"value": 0.5, "standard_error": 0.2}, "acc_norm": {"value": 0.25, "standard_error": None},
            },
        },
    },
    "samples": {"texts": [{"prompt": "the", "text": " cat & <b>hen</b>"}]},
}  # fmt: skip


def _reports(folder: Path) -> None:
    """A compiled directory with an evaluation in it; a profiled run and another evaluation beside it."""
    for name, options in (
        ("rows", {"context": 16}),
        ("groups", {"context": 12, "bits": 4, "group_size": 4}),
    ):
        write_tiny_llama(folder.parent / "told" / name, **SIZES)
        out = folder / name / "out"
        out.parent.mkdir(parents=True)
        shrinkc.compile(folder.parent / "told" / name, output=out, **options)
        run = run_of(compiled_page(out, reporter=Silent()).to_json(), 1.5)
        for path, content in (
            (out.parent / "run.json", run),
            (out.parent / "eval.json", EVALUATION),
            (out / "eval.json", EVALUATION),
        ):
            path.write_text(json.dumps(content))


def _run_reports(folder: Path) -> None:
    write_run(folder / "budget", "tiny", "Once")
    write_run(folder / "measured", "tiny", "Once")
    (folder / "measured" / BUDGET).unlink()
    write_json(folder / "measured" / SENSITIVITY, sensitivities(2))


RUN_ACTIONS: tuple[Action, ...] = (
    ("inspect", "{in}"),
    ("inspect", "{in}/01-gptq"),
    ("plan", "{in}/01-gptq"),
    ("py:steps", "{in}"),
)
SUBJECTS = {
    s.name: s
    for s in (
        Subject(
            "config", _configs, {"model/*config.json": JSON},
            (*READ, ("plan", "{in}/model/config.json"), ("inspect", "{in}/model/config.json")),
        ),
        Subject("safetensors", _safetensors, {"model/*.safetensors*": SAFETENSORS, "model/*.index.json": JSON}),
        Subject("gptq", _gptq, {"model/tokenizer.json": (), "model/*.json": JSON, "model/*": SAFETENSORS}),
        Subject(
            "adapter", _adapter, {"adapter/*.json": JSON, "adapter/*": SAFETENSORS},
            tuple((*a, "--adapter", "{in}/adapter") for a in READ if a[0] in ("plan", "compile")),
        ),
        Subject(
            "gguf", _gguf, {"model.gguf": GGUF},
            tuple(tuple(w.replace("/model", "/model.gguf") for w in action) for action in READ),
        ),
        Subject(
            "gguf-types", _gguf_types, {"model.gguf": GGUF},
            tuple(tuple(w.replace("/model", "/model.gguf") for w in action) for action in READ),
        ),
        Subject("tokenizer", _tokenizers, {"model/tokenizer*.json": JSON}, (*READ, ("py:encode", "{in}/model"))),
        Subject(
            "recipe", _recipes, {"recipe.toml": TOML}, (("py:recipe", "{in}/recipe.toml"),), frozenset({0, 16}),
        ),
        Subject(
            "compiled", _compiled,
            {
                "out/src/*": (), "out/Makefile": (), "out/build/*": (),
                "out/*.json": JSON, "out/*.safetensors": SAFETENSORS,
            },
            (
                ("inspect", "{in}/out"),
                ("inspect", "{in}/out/ir.safetensors"),
                ("diff", "{good}/out", "{in}/out", "--positions", "2"),
                ("run", "{in}/out", "--prompt-ids", "1,5", "--tokens", "2"),
                ("run", "{in}/out", "--prompt", "the", "--tokens", "2", "--json"),
            ),
            frozenset({0, 2, 10, 15, 21, 52, 60, 61, 64}), _seal_compiled, ("cc", "make"),
        ),
        Subject(
            "run", _runs,
            {"0*/model.safetensors": SAFETENSORS, "0*/*.json": JSON, "*.json": JSON, "*.toml": TOML},
            RUN_ACTIONS, MODEL | {62}, _seal_run,
        ),
        Subject(
            "report", _reports,
            {
                "out/src/*": (), "out/Makefile": (), "out/manifest.json": JSON, "out/plan.json": JSON,
                "out/eval.json": JSON, "*.json": JSON, "out/ir.safetensors": SAFETENSORS,
            },
            (
                ("report", "{in}/out", "-o", "{out}.html"),
                ("report", "{in}/out", "--run", "{in}/run.json", "-o", "{out}.html"),
                ("report", "{in}/out", "--eval", "{in}/eval.json", "-o", "{out}.html", "--json"),
            ),
            frozenset({0, 2, 17, 21, 61}), _seal_compiled,
        ),
        Subject(
            "run-report", _run_reports, {"0*/step.json": JSON, "*.json": JSON, "*.toml": TOML},
            (("report", "{in}", "-o", "{out}.html"),), frozenset({0, 61, 62}), _seal_run,
        ),
    )
}  # fmt: skip
