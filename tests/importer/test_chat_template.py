"""Chat templates: the files they are in, and their text compared with transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import BadTokenizer, UsageError
from shrinkc.importer import ChatTemplate, Tokenizer, load_model

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LINES = """
{{- bos_token }}
{%- if not date is defined %}
    {%- set date = strftime_now("%Y") if strftime_now is defined else "2024" %}
{%- endif %}
{% for message in messages %}
    {% if message['role'] == 'tool' %}
        {% continue %}
    {% endif %}
    {{ message | tojson }} {{ message['content'] | trim }} in {{ date }}{{ eos_token }}
{% endfor %}
"""
MARKED = """\
{% for message in messages %}
    {% if message['role'] == 'assistant' %}
        {% generation %}
        {{ message['content'] }}
        {% endgeneration %}
    {% endif %}
    {% generation %}
    {% set role = message['role'] %}
    {{ role }}: {{ message | tojson(separators=(',', ':'), sort_keys=true) }}
    {% endgeneration %}
    {{ role }} {{ message['content'] | trim }} {{ message['content'] | tojson(ensure_ascii=true) }}
{% endfor %}
"""
MESSAGES = ["", "Hi", "  <b>a & 'b'</b> \"c\"\n ", "ünïcode 漢字 🙂 {{ messages }} {% raw %}"]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("template", [CHATML, LINES, MARKED])
@pytest.mark.parametrize("message", MESSAGES)
def test_the_text_is_that_of_transformers(template: str, message: str) -> None:
    library = pytest.importorskip("transformers.utils.chat_template_utils")
    given = [{"role": "user", "content": message}]
    (want,), _ = library.render_jinja_template(
        [given], chat_template=template, add_generation_prompt=True, **TOKENS
    )
    assert message.strip() in want
    assert ChatTemplate(template, TOKENS).render(message) == want


def test_the_ids_are_those_of_transformers(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    write_tiny_llama(tmp_path)
    template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}</s>"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    settings = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "tokenizer_class": "LlamaTokenizer",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_model(tmp_path).tokenizer
    assert tokenizer.chat == ChatTemplate(template, TOKENS)
    theirs = library.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), chat_template=template, **TOKENS
    )
    want = theirs.apply_chat_template(
        [{"role": "user", "content": "the cat"}], add_generation_prompt=True, return_dict=False
    )
    ids = tokenizer.encode_chat("the cat")
    assert ids == list(want)
    assert ids[0] == 1 and ids[-1] == 2  # named by the template, and only by it


@pytest.mark.parametrize(
    ("settings", "jinja", "want"),
    [
        ({"chat_template": "a"}, None, "a"),
        ({"chat_template": "a"}, "b", "b"),  # as transformers: the file wins
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]},
         None, "d"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}]}, None, None),
        ({}, None, None),
        (None, None, None),
        (None, "c", "c"),
    ],
)  # fmt: skip
def test_where_it_is_found(
    tmp_path: Path, settings: dict[str, Any] | None, jinja: str | None, want: str | None
) -> None:
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if jinja is not None:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    found = ChatTemplate.from_dir(tmp_path)
    assert (found.source if found else None) == want


def test_of_a_gguf_file(tmp_path: Path) -> None:
    from helpers.tiny_gguf import tiny_gguf

    tiny_gguf(tmp_path / "m.gguf", layers=1, metadata={"tokenizer.chat_template": LINES})
    chat = load_model(tmp_path / "m.gguf").tokenizer.chat
    assert chat is not None and chat.source == LINES
    assert chat.tokens == TOKENS
    tiny_gguf(tmp_path / "none.gguf", layers=1)
    assert load_model(tmp_path / "none.gguf").tokenizer.chat is None


def test_kept_in_a_file(tmp_path: Path) -> None:
    chat = ChatTemplate(LINES, TOKENS)
    file = tmp_path / "chat_template.json"
    file.write_text(chat.to_json(), encoding="utf-8")
    assert ChatTemplate.from_json(file) == chat
    file.write_text('{"template": 3}')
    with pytest.raises(BadTokenizer, match="holds no chat template"):
        ChatTemplate.from_json(file)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('only tools') }}", "only tools"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),  # a model is no reason to run code
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ strftime_now.x.y }}", "UndefinedError"),
        ("{{ messages.append(1) }}", "SecurityError"),  # nor to change what it was given
        ("{{ '%(a)s' % {} }}", "KeyError"),
    ],
)
def test_templates_that_cannot_be_used(template: str, why: str) -> None:
    with pytest.raises(BadTokenizer, match=f"chat template cannot be used: .*{why}"):
        ChatTemplate(template).render("Hi")


def test_none(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    tokenizer = Tokenizer.from_dir(tmp_path, 107, 1)
    with pytest.raises(UsageError, match="no chat template"):
        tokenizer.encode_chat("Hi")
