r"""Train the small story model of this folder and write it as a Hugging Face directory.

Steps: read the teacher (stories260K), sample stories from it, train a tokenizer on those and on
real TinyStories text, train the model on whole stories, measure it, write the files. The model of
this folder came from two runs on one core, the second a short one against loops in greedy text:

    python train.py --data-dir DATA --out FIRST
    python train.py --data-dir DATA --out SECOND --continue-from FIRST --seed 4321 --samples 1500 \
        --steps 800 --lr 1e-3 --repeat-penalty 2

Python 3.11.7, torch 2.13.0 (CPU), tokenizers 0.23.3, safetensors 0.8.0. DATA holds tinystories/
and stories260K/; README.md names the sources of their files. One thread is used and nothing but
the printed seconds depends on the clock, so the same seed, versions and processor should give the
same files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from safetensors.torch import load_file, save_file
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor, nn

REAL_STORIES = "tinystories/tiny_stories_smallGPT.txt"
VALIDATION = "tinystories/tinystories_val.txt"
TEACHER_WEIGHTS = "stories260K/stories260K.bin"
TEACHER_PIECES = "stories260K/tok512.bin"

VOCAB_SIZE = 512
UNK, BOS, EOS = 0, 1, 2
SPECIALS = ["<unk>", "<s>", "</s>"]
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
# Letters too rare for this limit fall back to their byte piece: one id, as a piece would cost.
ALPHABET_LIMIT = 56
MAX_POSITIONS = 512
PROMPT = "Once upon a time"


# ---------------------------------------------------------------- real text


def repair_quotes(text: str) -> str:
    """Turn typographic quotes, also those read with the wrong code page, into ASCII ones."""
    for bad, good in (
        ("â€œ", '"'),
        ("â€™", "'"),
        ("â€˜", "'"),
        ("â€“", "-"),
        ("â€”", "-"),
        ("â€¦", "..."),
        ("â€\x9d", '"'),
        ("â€", '"'),
        ("“", '"'),
        ("”", '"'),
        ("’", "'"),
        ("‘", "'"),
    ):
        text = text.replace(bad, good)
    return text


def read_real_stories(path: Path) -> list[str]:
    """One story ends at a single newline; paragraphs inside it are divided by a blank line."""
    text = repair_quotes(path.read_text(encoding="utf-8"))
    pieces = (piece.strip() for piece in re.split(r"(?<!\n)\n(?!\n)", text))
    # Some stories use single newlines inside as well; their fragments are short and are left out.
    return [piece for piece in pieces if len(piece) >= 300 and piece.isascii()]


def read_validation(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [piece.strip() for piece in re.split(r"\n\n+(?=Once upon a time|One day)", text)[:80]]


# ---------------------------------------------------------------- teacher


@dataclass
class Teacher:
    """A llama2.c version 0 checkpoint, used only to write more stories of the same kind."""

    layers: int
    heads: int
    kv_heads: int
    context: int
    weights: dict[str, Tensor]
    pieces: list[bytes]
    scores: list[float]


def read_teacher(weights_path: Path, pieces_path: Path) -> Teacher:
    blob = weights_path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", blob)
    flat = torch.frombuffer(bytearray(blob[28:]), dtype=torch.float32)
    kv_dim = dim // heads * kv_heads
    shapes = {
        "embed": (vocab, dim),
        "norm1": (layers, dim),
        "q": (layers, dim, dim),
        "k": (layers, kv_dim, dim),
        "v": (layers, kv_dim, dim),
        "o": (layers, dim, dim),
        "norm2": (layers, dim),
        "gate": (layers, hidden, dim),
        "down": (layers, dim, hidden),
        "up": (layers, hidden, dim),
        "norm": (dim,),
        "cos": (context, dim // heads // 2),
        "sin": (context, dim // heads // 2),
    }
    weights, start = {}, 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        weights[name] = flat[start : start + count].view(shape)
        start += count
    pieces, scores = read_teacher_pieces(pieces_path, vocab)
    return Teacher(layers, heads, kv_heads, context, weights, pieces, scores)


def read_teacher_pieces(path: Path, vocab: int) -> tuple[list[bytes], list[float]]:
    blob, start = path.read_bytes(), 4
    pieces, scores = [], []
    for _ in range(vocab):
        score, length = struct.unpack_from("<fi", blob, start)
        piece = blob[start + 8 : start + 8 + length]
        byte = re.fullmatch(rb"<0x([0-9A-F]{2})>", piece)
        pieces.append(bytes([int(byte[1], 16)]) if byte else piece)
        scores.append(score)
        start += 8 + length
    return pieces, scores


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def rotate_adjacent(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """llama2.c turns neighbours (0, 1), (2, 3), ...; the model trained here turns halves."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def teacher_step(
    teacher: Teacher, ids: Tensor, caches: list[list[Tensor]], position: int
) -> Tensor:
    """Logits after one more token per row; caches are (rows * kv heads, time, width)."""
    w, rows, groups = teacher.weights, len(ids), teacher.heads // teacher.kv_heads
    x = w["embed"][ids]
    width = x.shape[-1] // teacher.heads
    cos, sin = w["cos"][position], w["sin"][position]
    for layer, (keys, values) in enumerate(caches):
        h = rms_norm(x, w["norm1"][layer])
        q = rotate_adjacent(
            (h @ w["q"][layer].T).view(rows * teacher.kv_heads, groups, width), cos, sin
        )
        keys[:, position] = rotate_adjacent((h @ w["k"][layer].T).view(-1, width), cos, sin)
        values[:, position] = (h @ w["v"][layer].T).view(-1, width)
        scores = torch.bmm(q, keys[:, : position + 1].transpose(1, 2)) / math.sqrt(width)
        attended = torch.bmm(scores.softmax(-1), values[:, : position + 1])
        x = x + attended.reshape(rows, -1) @ w["o"][layer].T
        h = rms_norm(x, w["norm2"][layer])
        x = x + (F.silu(h @ w["gate"][layer].T) * (h @ w["up"][layer].T)) @ w["down"][layer].T
    return rms_norm(x, w["norm"]) @ w["embed"].T


@torch.inference_mode()
def sample_batch(
    teacher: Teacher, rows: int, limit: int, generator: torch.Generator
) -> list[bytes]:
    """Write `rows` stories together; a story ends where the teacher begins one with BOS."""
    # Cool rows give clean sentences, warm rows give variety.
    temperature = torch.empty(rows, 1).uniform_(0.6, 0.95, generator=generator)
    width = teacher.weights["embed"].shape[1] // teacher.heads
    shape = (rows * teacher.kv_heads, limit, width)
    caches = [[torch.zeros(shape), torch.zeros(shape)] for _ in range(teacher.layers)]
    ids = torch.full((rows,), BOS)
    history = torch.zeros(rows, limit, dtype=torch.long)
    stories = []
    for position in range(limit):
        logits = teacher_step(teacher, ids, caches, position) / temperature
        noise = torch.empty_like(logits).exponential_(generator=generator)
        ids = (logits.softmax(-1) / noise).argmax(-1)
        history[:, position] = ids
        ended = (ids == BOS) & (history[:, 0] >= 0)
        for row in ended.nonzero().flatten().tolist():
            stories.append(b"".join(teacher.pieces[i] for i in history[row, :position].tolist()))
            ids[row] = EOS  # never BOS again; the row is dropped at the next clean-up
            history[row, 0] = -1
        live = history[:, 0] >= 0
        if not live.any():
            break
        if live.float().mean() < 0.85:
            keep = live.nonzero().flatten()
            ids, history, temperature = ids[keep], history[keep], temperature[keep]
            caches = [[drop_rows(part, live, teacher.kv_heads) for part in pair] for pair in caches]
    return stories


def drop_rows(cache: Tensor, live: Tensor, kv_heads: int) -> Tensor:
    return cache[live.repeat_interleave(kv_heads)]


def sample_stories(teacher: Teacher, count: int, rows: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    stories, start = [], time.time()
    while len(stories) < count:
        for raw in sample_batch(teacher, rows, 400, generator):
            text = repair_quotes(raw.decode("utf-8", "replace")).strip()
            text = re.sub(r"\n+", "\n\n", text)  # paragraphs as in the real stories
            # A story that the limit cut off has no end and is not in the batch at all.
            if (
                text.isascii()
                and len(text) >= 300
                and text[-1] in '.!?"'
                and not repeats_itself(text)
            ):
                stories.append(text)
        print(f"sampled {len(stories)} stories, {time.time() - start:.0f} s", flush=True)
    return stories[:count]


def repeats_itself(story: str) -> bool:
    """Whether a sentence comes twice: text to learn from must not teach loops."""
    sentences = [part.strip() for part in re.split(r"[.!?\n]", story) if len(part) > 20]
    return len(set(sentences)) < len(sentences)


def drop_misspelt(samples: list[str], real: list[str]) -> list[str]:
    """Leave out samples with a word that no real story has and few samples have."""
    words = [set(re.findall(r"[A-Za-z]+", story)) for story in samples]
    known = {word for story in real for word in re.findall(r"[A-Za-z]+", story)}
    often = Counter(word for story in words for word in story)
    return [
        story
        for story, used in zip(samples, words, strict=True)
        if all(word in known or often[word] >= 3 for word in used)
    ]


# ---------------------------------------------------------------- tokenizer


def train_tokenizer(stories: list[str]) -> Tokenizer:
    """Llama-2 style BPE: spaces become U+2581, unknown characters become byte pieces."""
    trainee = Tokenizer(models.BPE())
    trainee.normalizer = llama_normalizer()
    # Only for training: keeps pieces inside one word or one run of punctuation.
    trainee.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"▁?[A-Za-z]+|\n+|▁?[^A-Za-z▁\n]+|▁"), "isolated"
    )
    trainee.train_from_iterator(
        stories,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=SPECIALS + BYTE_PIECES,
            limit_alphabet=ALPHABET_LIMIT,
            show_progress=False,
        ),
    )
    learned = json.loads(trainee.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    # Built anew, so that byte pieces are plain pieces: the text "<0x41>" must not read as A.
    tokenizer = Tokenizer(
        models.BPE(
            learned["vocab"],
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.normalizer = llama_normalizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", BOS)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def llama_normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


# ---------------------------------------------------------------- model


@dataclass
class Shape:
    hidden: int = 96
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    intermediate: int = 256
    theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, time_steps, _ = x.shape
        q, k, v = (
            proj(x).view(rows, time_steps, -1, self.shape.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate_halves(q, cos, sin), rotate_halves(k, cos, sin)
        groups = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(attended.transpose(1, 2).reshape(x.shape))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, shape.eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The LLaMA architecture; "model." before its parameter names gives the Hugging Face names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(VOCAB_SIZE, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.eps)
        frequency = shape.theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.outer(torch.arange(MAX_POSITIONS), frequency)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.start_weights()

    def start_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            # What is added to the residual stream starts smaller, the usual scaling with depth.
            narrow = name.endswith(("o_proj.weight", "down_proj.weight"))
            spread = 1 / math.sqrt(parameter.shape[1])
            nn.init.normal_(
                parameter, std=spread / math.sqrt(2 * self.shape.layers) if narrow else spread
            )
        nn.init.normal_(self.embed_tokens.weight, std=0.05)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


# ---------------------------------------------------------------- training


def story_batches(
    rows: list[list[int]], tokens: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets). Every row is one story from its BOS on, as in later use."""
    while True:
        # Stories of like length share a batch, so that little of it is padding.
        order = sorted(rows, key=lambda row: len(row) + rng.random() * 16)
        batches, batch = [], []
        for row in order:
            if batch and (len(batch) + 1) * max(len(row), len(batch[-1])) > tokens:
                batches.append(batch)
                batch = []
            batch.append(row)
        rng.shuffle(batches)
        for batch in batches:
            length = max(map(len, batch))
            ids = torch.tensor([row + [-100] * (length - len(row)) for row in batch])
            yield ids[:, :-1].clamp(min=0), ids[:, 1:]


def learning_rate(step: int, steps: int, peak: float) -> float:
    warmup = min(100, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def repeat_penalty(logits: Tensor, inputs: Tensor, targets: Tensor, width: int = 4) -> Tensor:
    """Unlikelihood of copying: the id that followed when the last `width` ids came before.

    Small models that always take the likeliest id fall into loops; text that goes on in another
    way after the same words teaches them to leave the beaten path. Where the text does repeat
    itself nothing is added.
    """
    windows = inputs.unfold(1, width, 1)  # window w ends at position w + width - 1
    powers = VOCAB_SIZE ** torch.arange(width)
    keys = (windows * powers).sum(-1)
    earlier = (keys[:, :, None] == keys[:, None, :]).tril(-1)
    latest = torch.where(earlier, torch.arange(keys.shape[1]), -1).amax(-1)
    followed = inputs.gather(1, latest.clamp(min=0) + width)
    wanted = targets[:, width - 1 :]
    counts = (latest >= 0) & (wanted >= 0) & (followed != wanted)
    odds = logits[:, width - 1 :].log_softmax(-1).gather(-1, followed[..., None])[..., 0]
    penalty = -torch.log1p(-odds.exp().clamp(max=0.999))
    return (penalty * counts).sum() / (targets >= 0).sum()


def train(
    model: Llama, tokenizer: Tokenizer, rows: list[list[int]], args: argparse.Namespace
) -> dict[str, float]:
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-9,
    )
    batches = story_batches(rows, args.batch_tokens, random.Random(args.seed))
    start, seen, recent = time.time(), 0, []
    for step in range(args.steps):
        inputs, targets = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        logits = model(inputs)
        likelihood = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss = likelihood
        if args.repeat_penalty:
            loss = loss + args.repeat_penalty * repeat_penalty(logits, inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += int((targets >= 0).sum())
        recent = [*recent[-199:], likelihood.item()]
        if (step + 1) % 200 == 0:
            mean, seconds = sum(recent) / len(recent), time.time() - start
            line = f"step {step + 1}/{args.steps} loss {mean:.4f} tokens {seen} {seconds:.0f} s"
            print(line, flush=True)
        if (step + 1) % 1000 == 0:
            write_directory(model, tokenizer, args.out)  # an interrupted run leaves a model behind
    return {
        "train_loss_last_200_steps": sum(recent) / len(recent),
        "tokens_seen": seen,
        "train_seconds": time.time() - start,
    }


# ---------------------------------------------------------------- evaluation


@torch.inference_mode()
def validation_loss(model: Llama, tokenizer: Tokenizer, pieces: list[str]) -> dict[str, float]:
    """Mean loss over all predicted tokens; bits per byte of the text they stand for."""
    total, count, size = 0.0, 0, 0
    for piece in pieces:
        ids = tokenizer.encode(piece).ids[:400]
        if len(ids) < 50:
            continue
        logits = model(torch.tensor([ids[:-1]]))[0]
        total += F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        count += len(ids) - 1
        size += len(piece_bytes(tokenizer, ids[1:]).removeprefix(b" "))
    return {
        "val_loss": total / count,
        "val_tokens": count,
        "val_bytes": size,
        "val_bits_per_byte": total / math.log(2) / size,
    }


def piece_bytes(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    """The bytes of these ids, exact even where the ids end inside a character of several bytes."""
    return b"".join(
        bytes([int(piece[3:5], 16)]) if piece in BYTE_PIECES else piece.replace("▁", " ").encode()
        for piece in map(tokenizer.id_to_token, ids)
    )


def teacher_encode(teacher: Teacher, text: str) -> list[int]:
    """llama2.c's encoder: begin with characters, then join the neighbours of best score."""
    # Before 259 come the specials and the bytes.
    ranked = {piece: i for i, piece in enumerate(teacher.pieces) if i >= 259}
    ids: list[int] = []
    for char in " " + text:
        raw = char.encode()
        ids += [ranked[raw]] if raw in ranked else [byte + 3 for byte in raw]
    while True:
        pairs = [teacher.pieces[a] + teacher.pieces[b] for a, b in itertools.pairwise(ids)]
        joins = [
            (teacher.scores[ranked[pair]], -at) for at, pair in enumerate(pairs) if pair in ranked
        ]
        if not joins:
            return [BOS, *ids]
        at = -max(joins)[1]
        ids[at : at + 2] = [ranked[pairs[at]]]


@torch.inference_mode()
def teacher_validation(teacher: Teacher, pieces: list[str]) -> dict[str, float]:
    """The same measure for the teacher, whose tokenizer differs: only bits per byte compare."""
    rows = [
        ids for ids in (teacher_encode(teacher, piece)[:400] for piece in pieces) if len(ids) >= 50
    ]
    width = teacher.weights["embed"].shape[1] // teacher.heads
    shape = (len(rows) * teacher.kv_heads, 400, width)
    caches = [[torch.zeros(shape), torch.zeros(shape)] for _ in range(teacher.layers)]
    padded = torch.tensor([row + [-100] * (400 - len(row)) for row in rows])
    total = 0.0
    for position in range(399):
        logits = teacher_step(teacher, padded[:, position].clamp(min=0), caches, position)
        total += F.cross_entropy(
            logits, padded[:, position + 1], ignore_index=-100, reduction="sum"
        ).item()
    count = sum(len(row) - 1 for row in rows)
    size = sum(len(b"".join(teacher.pieces[i] for i in row[1:])) - 1 for row in rows)
    return {
        "teacher_val_loss": total / count,
        "teacher_val_tokens": count,
        "teacher_val_bytes": size,
        "teacher_val_bits_per_byte": total / math.log(2) / size,
    }


@torch.inference_mode()
def greedy(
    model: Llama, tokenizer: Tokenizer, prompt: str, new_tokens: int
) -> tuple[str, int, bool]:
    """Text, number of new ids, and whether the model ended the story itself."""
    ids = tokenizer.encode(prompt).ids
    begin = len(ids)
    for _ in range(new_tokens):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return tokenizer.decode(ids), len(ids) - begin, ids[-1] == EOS


# ---------------------------------------------------------------- output


def write_directory(model: Llama, tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    shape = model.shape
    weights = {
        f"model.{name}": p.detach().to(torch.float16) for name, p in model.named_parameters()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": MAX_POSITIONS,
            "rms_norm_eps": shape.eps,
            "rope_theta": shape.theta,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "torch_dtype": "float16",
        },
    )
    write_json(
        out / "generation_config.json",
        {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": False},
    )
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "model_max_length": MAX_POSITIONS,
            "clean_up_tokenization_spaces": False,
        },
    )


def write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-dir", type=Path, required=True, help="has tinystories/ and stories260K/"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model to")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument(
        "--samples", type=int, default=12000, help="stories to sample from the teacher"
    )
    parser.add_argument("--sample-rows", type=int, default=512, help="stories sampled together")
    parser.add_argument(
        "--real-weight", type=int, default=2, help="copies of each real story in one epoch"
    )
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument(
        "--continue-from", type=Path, help="start from this model and keep its tokenizer"
    )
    parser.add_argument(
        "--repeat-penalty", type=float, default=0.0, help="weight of the penalty on copying"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the same sums in the same order on every run
    torch.manual_seed(args.seed)
    teacher = read_teacher(args.data_dir / TEACHER_WEIGHTS, args.data_dir / TEACHER_PIECES)
    pieces = read_validation(args.data_dir / VALIDATION)
    report: dict[str, object] = dict(teacher_validation(teacher, pieces))
    print(report, flush=True)

    real = read_real_stories(args.data_dir / REAL_STORIES)
    start = time.time()
    sampled = sample_stories(teacher, args.samples, args.sample_rows, args.seed)
    samples = drop_misspelt(sampled, real)
    report |= {
        "real_stories": len(real),
        "sampled": len(sampled),
        "sampled_kept": len(samples),
        "sample_seconds": time.time() - start,
    }

    first = args.continue_from
    tokenizer = (
        Tokenizer.from_file(str(first / "tokenizer.json"))
        if first
        else train_tokenizer(real + samples)
    )
    rows = [
        [*row.ids, EOS][:MAX_POSITIONS]
        for row in tokenizer.encode_batch(real * args.real_weight + samples)
    ]
    report["tokens_per_epoch"] = sum(map(len, rows))
    print(report, flush=True)

    model = Llama(Shape())
    if first:
        stored = load_file(first / "model.safetensors")
        model.load_state_dict(
            {name.removeprefix("model."): part.float() for name, part in stored.items()}
        )
    report["parameters"] = sum(p.numel() for p in model.parameters())
    report |= train(model, tokenizer, rows, args)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()  # measure what is stored
    write_directory(model, tokenizer, args.out)
    text, new, ended = greedy(model, tokenizer, PROMPT, 256)
    report |= validation_loss(model, tokenizer, pieces)
    report |= {"greedy": text, "greedy_new_tokens": new, "greedy_ended": ended}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
