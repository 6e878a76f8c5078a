# %% [markdown]
# # From a checkpoint to a proved run, in Python
#
# `import shrinkc` has the functions that the commands call: `open`, `plan`, `compile`, `run`,
# `evaluate` and `compress`.  This file is a notebook of cells (`# %%`) that editors such as VS Code,
# Spyder and PyCharm run one by one, and `python examples/python_api.py` all at once.  It needs a C
# compiler and make, no torch, and takes some seconds.

# %%
import tempfile
from pathlib import Path

import shrinkc

MODEL = Path(__file__).parent / "stories"
WORK = Path(tempfile.mkdtemp(prefix="shrinkc-example-"))

# %% [markdown]
# ## Open
# Configuration, tokenizer and headers are read and checked, weights are not.

# %%
model = shrinkc.open(MODEL)
config = model.config
print(
    f"{model.name}: {config.num_layers} layers of {config.hidden_size}, {config.vocab_size} tokens"
)

# %% [markdown]
# ## Plan
# What fits the SoC, and where?  A plan takes a moment, so that a sweep is a loop.  What does not fit
# says in numbers what lacks.

# %%
print(f"{'bits':>4} {'context':>8} {'weights KiB':>12} {'L2 KiB':>7}  KV cache  tokens at a time")
for bits in (8, 4, 3, 2):
    for context in (64, 256, 512):
        found = shrinkc.plan(
            model, bits=bits, group_size=None if bits == 8 else 32, context=context, l1=50 * 1024
        )
        if found.fits:
            plan = found.plan
            weights, l2 = found.weight_bytes / 1024, plan.used["l2"] / 1024
            place = "L1" if plan.kv_in_l1 else " and ".join(plan.kv_layers)
            print(f"{bits:4} {context:8} {weights:12.1f} {l2:7.1f}  {place:8}  {plan.chunk}")
        else:
            lacks = ", ".join(f"{x.level} lacks {x.excess} bytes" for x in found.lacks)
            print(f"{bits:4} {context:8} {lacks}")

# %%
tight = shrinkc.plan(model, context=512, l1=16 * 1024)
assert not tight.fits
for lack in tight.lacks:
    print(f"{lack.level}: need {lack.need}, have {lack.have}; most of it: {lack.largest[0]}")
print("would fit with one of:", *tight.alternatives, sep="\n  ")

# %% [markdown]
# ## Compile
# The directory is whole or not there at all.

# %%
made = shrinkc.compile(model, WORK / "out", context=512)
print(f"{made.files} files in {made.output.name}; the same as: {made.prepared.command}")

# %% [markdown]
# ## Run, and prove every integer
# The same program on this machine, under qemu (`on="qemu"`) and on the simulated SoC
# (`on="gvsoc"`).  A single integer that differs from the interpreter's raises `Mismatch`.

# %%
story = shrinkc.run(
    made.output, prompt="Once upon a time", tokens=100, on_text=lambda text: print(text, end="")
)
assert story.verdict is not None
print(f"{story.verdict.compared} values compared, {story.verdict.mismatched} differ")

# %% [markdown]
# ## Evaluate
# The integer program's perplexity on a short text: its own stories, by which it is hardly surprised.
# `shrinkc.evaluate(MODEL, text=...)` measures the float model in the same way, which needs torch.

# %%
text = WORK / "text.txt"
text.write_text("\n".join([story.text.strip()] * 8))
report = shrinkc.evaluate(made.output, text=text, windows=1)
measured = report["perplexity"]
print(f"perplexity {measured['perplexity']:.2f} on {measured['tokens']} tokens")

# %% [markdown]
# ## Errors
# Every refusal is an exception of `shrinkc.errors` with a message that says what is allowed.

# %%
try:
    shrinkc.compile(model, WORK / "small", context=512, l1=16 * 1024)
except shrinkc.errors.DoesNotFit as refusal:
    print(
        f"{type(refusal).__name__}: {refusal.lacks[0].level} lacks {refusal.lacks[0].excess} bytes"
    )
assert not (WORK / "small").exists()
print(f"all of it is in {WORK}")
