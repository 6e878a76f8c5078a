"""Draw where the heads of a model look: `python examples/attention_maps.py MODEL [-o maps.png]`.

MODEL is a directory that transformers loads, such as a step of `shrinkc compress` or what `shrinkc franken --save`
writes.  A row of the picture is a layer, a column a head; of each map the square root is drawn, and below the maps
the logarithm of the magnitude of their two-dimensional Fourier transforms, frequency 0 in the middle.
"""

import argparse

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("model")
parser.add_argument("--prompt", default="Once upon a time")
parser.add_argument("--tokens", type=int, default=28, help="new ones after the prompt")
parser.add_argument("-o", "--output", default="maps.png")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
# only this implementation of attention returns the maps
model = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="eager").float()
ids = tokenizer(options.prompt, return_tensors="pt")["input_ids"]
text = model.generate(ids, max_new_tokens=options.tokens, do_sample=False)
with torch.no_grad():
    maps = np.stack([m[0].numpy() for m in model(text, output_attentions=True).attentions])

layers, heads, size, _ = maps.shape
spectra = np.abs(np.fft.fftshift(np.fft.fft2(maps), axes=(-2, -1)))
figure = Figure((heads + 1, 2 * layers + 1), layout="constrained")
axes = figure.subplots(2 * layers, heads, squeeze=False)
for row, pictures in enumerate([*np.sqrt(maps), *np.log1p(spectra)]):
    axes[row, 0].set_ylabel(f"{'map' if row < layers else 'Fourier'} {row % layers}")
    for axis, picture in zip(axes[row], pictures, strict=True):
        axis.imshow(picture, cmap="magma")
        axis.set_xticks([])
        axis.set_yticks([])
figure.savefig(options.output)

# 0: looks at one token; 1: looks at all alike.  Row 0 has only one token to look at.
entropy = -(maps * np.log(maps.clip(1e-12))).sum(-1)[..., 1:] / np.log(np.arange(2, size + 1))
print("layer  head  entropy  to the first token")
for layer, head in np.ndindex(layers, heads):
    to_first = maps[layer, head, :, 0].mean()
    print(f"{layer:5}{head:6}{entropy[layer, head].mean():9.3f}{to_first:20.3f}")
