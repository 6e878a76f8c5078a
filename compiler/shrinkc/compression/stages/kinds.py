"""The list of all stages.  A new stage needs its file, and an import and an entry here."""

from __future__ import annotations

from shrinkc.compression.stages.awq import AWQ
from shrinkc.compression.stages.context import StageKind
from shrinkc.compression.stages.depth import DEPTH
from shrinkc.compression.stages.eora import EORA
from shrinkc.compression.stages.finetune_scales import FINETUNE_SCALES
from shrinkc.compression.stages.gptq import GPTQ
from shrinkc.compression.stages.lora import LORA
from shrinkc.compression.stages.qat import QAT
from shrinkc.compression.stages.reconstruct import RECONSTRUCT
from shrinkc.compression.stages.rotate import ROTATE
from shrinkc.compression.stages.vocabulary import VOCABULARY
from shrinkc.compression.stages.width import WIDTH

KINDS: dict[str, StageKind] = {
    kind.name: kind
    for kind in (
        VOCABULARY, DEPTH, WIDTH, LORA, ROTATE, AWQ, GPTQ, RECONSTRUCT, FINETUNE_SCALES, QAT, EORA,
    )
}  # fmt: skip
