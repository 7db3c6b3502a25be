"""Chat templates: the target is the answer and nothing of the prompt, and a template that hides where it begins is refused."""

from __future__ import annotations

import json

import pytest

from trainers.data.chat import Template, plain, template_of
from trainers.data.sources import TableError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def test_generation_marks_have_the_effect_on_blanks_of_any_other_tag():
    marked = (
        "{% for m in messages %}{{ m.role }}:\n{%- generation -%}\n{{ m.content }}\n{%- endgeneration %}\n;{% endfor %}"
    )
    plain_tags = marked.replace("endgeneration", "endif").replace("generation", "if true")
    assert Template(marked, "x")._render(TURNS, False) == Template(plain_tags, "x")._render(TURNS, False)
    assert Template("{{ messages | tojson }}", "x")._render([{"content": "<é'>"}], False) == """[{"content": "<é'>"}]"""


def test_the_target_is_the_last_turn_with_its_end():
    assert Template(CHATML, "x")(TURNS) == (
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n",
        "4<|im_end|>\n",
    )
    assert plain()(TURNS) == ("user: 2 + 2?\nassistant: ", "4\n")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} ->{% endif %}",  # no prefix
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",  # no answer
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].nothing.more }}",
    ],
)
def test_a_template_under_which_the_answer_cannot_be_masked_is_refused(source):
    with pytest.raises(ValueError) as refused:
        Template(source, "mine.jinja")(TURNS)
    assert "mine.jinja" in str(refused.value) and "\n" not in str(refused.value)


def test_a_models_folder_gives_its_template_and_its_marks(tmp_path):
    config = {"chat_template": "{{ bos_token }}" + CHATML, "bos_token": {"content": "<s>"}, "eos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert template_of(tmp_path)(TURNS)[0].startswith("<s><|im_start|>user")
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert template_of(tmp_path)(TURNS)[0].startswith("<|im_start|>user")
    assert template_of(tmp_path).digest != template_of(tmp_path / "chat_template.jinja").digest  # other marks


@pytest.mark.parametrize("text", ["{% for %}", "{{ ''.__class__.__mro__ }}{{ messages[0].x() }}"])
def test_bad_or_hostile_templates_are_refused_in_a_line(text, tmp_path):
    (tmp_path / "bad.jinja").write_text(text)
    with pytest.raises((TableError, ValueError)) as refused:
        template_of(tmp_path / "bad.jinja")(TURNS)
    assert "\n" not in str(refused.value)


def test_no_template_in_a_folder_or_file_is_said(tmp_path):
    for path in (tmp_path, tmp_path / "none.jinja"):
        with pytest.raises(TableError, match=str(tmp_path)):
            template_of(path)
