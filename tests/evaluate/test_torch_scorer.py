"""Losses, choices and text of the torch scorer against simple reference computations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shrinkc.checkpoints import Loaded, load
from shrinkc.core.errors import BadWeights, UsageError
from shrinkc.evaluation import Choices, TorchScorer, torch_scorer

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"
LENGTHS = (3, 30, 12, 2, 30, 17, 9)


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def stories() -> Loaded:
    return load(STORIES)


@pytest.fixture
def end_after(stories: Loaded) -> Iterator[Any]:
    """Sets the end token of the model for one test."""
    settings: Any = stories.model.generation_config
    before = settings.eos_token_id

    def set_end(token: int) -> None:
        settings.eos_token_id = token

    yield set_end
    settings.eos_token_id = before


@pytest.fixture(scope="module")
def sequences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 512, length).tolist() for length in LENGTHS]


def plain_losses(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
        return torch.nn.functional.cross_entropy(
            logits, torch.tensor(ids[1:]), reduction="none"
        ).numpy()


def plain_text(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_losses_are_cross_entropies_in_the_order_asked(
    stories: Loaded, sequences: list[list[int]], batch: int
) -> None:
    seen: list[tuple[int, int]] = []
    losses = TorchScorer(stories, batch=batch).losses(
        sequences, lambda done, total: seen.append((done, total))
    )
    for got, ids in zip(losses, sequences, strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, plain_losses(stories.model, ids), atol=2e-5)
    assert seen[-1] == (7, 7)
    assert seen[0] == (0, 7) and len(seen) == 1 + math.ceil(7 / batch)


def test_logits_in_slices(
    stories: Loaded, sequences: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TorchScorer(stories).losses(sequences, ignore)
    monkeypatch.setattr(torch_scorer, "_LOGIT_BYTES", 4 * 512 * 7)
    for got, want in zip(TorchScorer(stories).losses(sequences, ignore), whole, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_choices_share_their_context(stories: Loaded, batch: int) -> None:
    rng = np.random.default_rng(1)
    questions = [
        Choices(
            rng.integers(3, 512, context).tolist(),
            [rng.integers(3, 512, ending).tolist() for ending in endings],
        )
        for context, endings in ((20, (4, 1, 9, 2)), (5, (3, 3)), (33, (7, 2, 1, 8)), (1, (6,)))
    ]
    scorer = TorchScorer(stories, batch=batch)
    for question, got in zip(questions, scorer.predicted(questions, ignore), strict=True):
        for ending, found in zip(question.endings, got, strict=True):
            want = plain_losses(stories.model, question.context + ending)[-len(ending) :]
            np.testing.assert_allclose(found.losses, want, atol=1e-4)
            ((alone,),) = scorer.predicted([Choices(question.context, [ending])], ignore)
            assert found.greedy.tolist() == alone.greedy.tolist()


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_greedy_text_is_that_without_cache_and_padding(stories: Loaded, batch: int) -> None:
    scorer = TorchScorer(stories, batch=batch)
    prompts = [
        scorer.encode(text, special=True) for text in ("Once upon a time", "", "Tom and Mia")
    ]
    got = scorer.generate(prompts, 24, ignore)
    assert got == [plain_text(stories.model, prompt, 24) for prompt in prompts]


def test_rows_end_by_themselves(stories: Loaded, end_after: Any) -> None:
    prompts = [
        TorchScorer(stories).encode(t, special=True) for t in ("Once upon", "Tom", "One day")
    ]
    texts = [plain_text(stories.model, prompt, 20) for prompt in prompts]
    token = texts[0][7]
    end_after(token)
    want = [text[: text.index(token)] if token in text else text for text in texts]
    assert len({len(text) for text in want}) > 1, "they should not all end together"
    assert TorchScorer(stories).generate(prompts, 20, ignore) == want


def test_text_ends_with_what_ends_it(stories: Loaded) -> None:
    scorer = TorchScorer(stories)
    prompt = scorer.encode("Once upon a time", special=True)
    (whole,) = scorer.generate([prompt], 120, ignore)
    assert "\n" in scorer.decode(whole).strip(), "the story has a second paragraph"
    (line,) = scorer.generate([prompt], 120, ignore, ("nowhere", "\n"))
    assert line == whole[: len(line)]
    assert "\n" not in scorer.decode(line[:-1]), "one token may hold two line feeds"
    assert "\n" in scorer.decode(line[-1:])


def test_bfloat16_is_close_to_float32(stories: Loaded, sequences: list[list[int]]) -> None:
    coarse = TorchScorer(load(STORIES, dtype="bfloat16"))
    assert coarse.describe()["dtype"] == "bfloat16"
    got = np.concatenate(coarse.losses(sequences, ignore))
    want = np.concatenate(TorchScorer(stories).losses(sequences, ignore))
    assert np.abs(got - want).mean() < 0.05


def test_a_loss_that_is_no_number_is_refused(stories: Loaded) -> None:
    model: Any = load(STORIES).model
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(BadWeights, match="not a finite number"):
        TorchScorer(Loaded(model, stories.tokenizer, stories.path, "hf")).losses(
            [[1, 2, 3]], ignore
        )


def test_refusals(stories: Loaded) -> None:
    with pytest.raises(UsageError, match="a batch of 0"):
        TorchScorer(stories, batch=0)
    with pytest.raises(UsageError, match="no chat template"):
        TorchScorer(stories).encode_chat("Hello")
    with pytest.raises(UsageError, match="no tokens"):
        TorchScorer(stories).generate([[]], 3, ignore)


def test_chat_template(stories: Loaded) -> None:
    tokenizer: Any = load(STORIES).tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    scorer = TorchScorer(Loaded(stories.model, tokenizer, stories.path, "hf"))
    ids = scorer.encode_chat("Tell a story.")
    assert scorer.decode(ids) == "user: Tell a story.\nassistant:"
    assert ids[0] != tokenizer.bos_token_id, "the template decides about special tokens"


def test_description(stories: Loaded) -> None:
    about = TorchScorer(stories, batch=2).describe()
    assert about["name"] == "stories"
    assert (about["kind"], about["dtype"], about["device"]) == ("hf", "float32", "cpu")
    assert about["parameters"] == 541728
    assert about["threads"] == torch.get_num_threads()
