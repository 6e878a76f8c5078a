"""Quantise a tiny model with GPTQModel in several ways; run as a program, in a process of its own.

``python quantize_with_gptqmodel.py FLOAT_DIR OUT_DIR``: for every entry of CASES writes the checkpoint
``OUT_DIR/<name>`` and ``OUT_DIR/<name>.npz``, the matrices as GPTQModel's torch kernel computes
them, and its logits of TOKENS.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "b4_sym": {"bits": 4, "group_size": 32, "sym": True, "desc_act": False},
    "b4_act": {
        "bits": 4,
        "group_size": 32,
        "sym": False,
        "desc_act": True,
        "act_group_aware": False,
    },
    "b3_v2_dynamic": {
        "bits": 3,
        "group_size": 32,
        "sym": False,
        "desc_act": False,
        "format": "gptq_v2",
        "dynamic": {r"-:.*\.0\.mlp\.up_proj": {}, r"+:.*\.1\.mlp": {"bits": 8, "group_size": 16}},
    },
    "b8_channel": {
        "bits": 8,
        "group_size": -1,
        "sym": True,
        "desc_act": False,
        "act_group_aware": False,
        "lm_head": True,
    },
}
WITH_EORA = "b4_sym"
RANK = 4
TOKENS = [1, 5, 9, 20, 33, 40, 60, 7]


def main(source: Path, out: Path) -> None:
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import numpy as np
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.adapter.adapter import Lora

    torch.set_num_threads(1)
    ids = torch.randint(3, 100, (8, 64), generator=torch.Generator().manual_seed(0))
    texts = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids]
    for name, fields in CASES.items():
        config = QuantizeConfig(pack_impl="original", **fields)
        model = GPTQModel.load(str(source), config)
        model.quantize(texts, batch_size=4)
        model.save(str(out / name))
        adapter = None
        if name == WITH_EORA:
            adapter = Lora(path=str(out / name / "eora"), rank=RANK)
            GPTQModel.adapter.generate(
                adapter=adapter,
                model_id_or_path=str(source),
                quantized_model_id_or_path=str(out / name),
                calibration_dataset=texts,
                calibration_dataset_sort="desc",
                batch_size=4,
            )
            adapter = Lora(path=str(out / name / "eora"), rank=RANK)
        loaded = GPTQModel.load(
            str(out / name),
            backend=BACKEND.TORCH,
            device="cpu",
            dtype=torch.float16,
            adapter=adapter,
        )
        matrices = {
            path: module.dequantize_weight().T.float().numpy()
            for path, module in loaded.model.named_modules()
            if hasattr(module, "qweight")
        }
        with torch.no_grad():
            matrices["logits"] = loaded.model(torch.tensor([TOKENS])).logits[0].float().numpy()
        np.savez(out / f"{name}.npz", **matrices)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
