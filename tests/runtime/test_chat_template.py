"""Templates render as transformers renders them, and a hostile one comes to nothing."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpi_runtime import chat_template
from rpi_runtime.chat_template import ChatTemplate
from rpi_runtime.errors import BundleError, UsageError

ONE_TURN = [{"role": "user", "content": "What is in <b>the</b> picture?\n"}]
TWO_TURNS = [
    *ONE_TURN,
    {"role": "assistant", "content": "\nA “house” & two trees.  "},
    {"role": "user", "content": "  And écrit?\r\n"},
]
SYSTEM = {"role": "system", "content": "Be brief. "}
CONVERSATIONS = [ONE_TURN, [SYSTEM, *ONE_TURN], TWO_TURNS, [SYSTEM, *TWO_TURNS]]

# Each uses a part of the environment that transformers sets up.
TEMPLATES = {
    "trimmed blocks": "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n"
    "{% endfor %}\n",
    "stripped blocks": "  {%- for m in messages -%}  {{ m['content'] | trim }}  {%- endfor -%}  ",
    "loop controls": "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}"
    "{{ '<é>' | tojson(ensure_ascii=true) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
    "tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}",
    "macros": "{% macro turn(m) %}[{{ m.role }}: {{ m.content }}]{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "tools": "{% if tools %}tools{% endif %}{% if documents is none %}no documents{% endif %}",
    "text functions": "{{ messages[0].content.split('<b>')[0].upper().strip() ~ '%d' % 3 }}"
    "{{ '{}'.format('x') ~ 'a' * 3 }}",
    "generation prompt": "{% if add_generation_prompt %}assistant:{% endif %}",
    "date": "{{ strftime_now('%Y-%m') }}",
    "dict": "{{ dict(a=1, b='c') | tojson }}{{ range(3) | list }}{{ messages[::-1] | length }}",
    "reversed": "{% for m in messages | reverse %}{{ loop.revindex }}{{ m.role | capitalize }}{% endfor %}",
}


def _theirs(source: str, messages: list[dict[str, str]], add_generation_prompt: bool, **tokens: str) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=add_generation_prompt, **tokens
    )
    text: str = rendered[0]
    return text


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one", "system+one", "two", "system+two"])
def test_every_part_of_the_environment_is_transformers(
    source: str, messages: list[dict[str, str]], prompt: bool
) -> None:
    ours = ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, prompt)
    assert ours == _theirs(source, messages, prompt, bos_token="<s>", eos_token="</s>")


def test_a_token_that_the_model_lacks_is_undefined_as_in_transformers() -> None:
    assert ChatTemplate("{{ bos_token is defined }}").render(ONE_TURN) == "False"


def test_the_templates_own_refusal_is_the_users_mistake() -> None:
    template = ChatTemplate("{{ raise_exception('Roles must alternate user and assistant') }}")
    with pytest.raises(UsageError, match="Roles must alternate"):
        template.render(ONE_TURN)


def test_a_long_conversation_is_within_the_bounds() -> None:
    messages = [{"role": "user", "content": "word " * 20_000}, {"role": "assistant", "content": "yes"}] * 50
    source = (
        "{% for m in messages %}{{ m.content.split('</think>')[-1].replace('<br>', '\n') | trim ~ m.role }}"
        "{% endfor %}"
    )
    assert ChatTemplate(source).render(messages) == _theirs(source, messages, True)


HOSTILE = {
    "endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "endless loop with break": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% if a %}{% continue %}{% endif %}{% endfor %}{% endfor %}",
    "much text": "{% for a in range(4000) %}" + "x" * 10_000 + "{% endfor %}",
    "repeated text": "{{ 'a' * 10**12 }}",
    "repeated list": "{{ [1] * 10**12 }}",
    "repeated long items": "{{ (['b' * 100000] * 100000) | join }}",
    "great power": "{{ 10 ** (10 ** 10) }}",
    "doubling with ~": "{% set n = namespace(s='a') %}"
    "{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling with +": "{% set n = namespace(s='a') %}"
    "{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling in blocks": "{% set s = 'a' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 60,
    "doubling in macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "endless macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "wide filter": "{{ 'a' | center(10**10) }}",
    "wide filter block": "{% filter center(10**10) %}a{% endfilter %}",
    "wide method": "{{ 'a'.ljust(10**10) }}",
    "wide format": "{{ '{:10000000000}'.format(1) }}",
    "wide nested format": "{{ '{:{}}'.format(1, 10**10) }}",
    "wide percent": "{{ '%10000000000d' % 1 }}",
    "wide percent star": "{{ '%*d' % (10**10, 1) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replace method": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "mapped filter": "{{ range(99999) | map('string') | map('center', 99999) | join }}",
    "latin text": "{{ lipsum(n=100000) }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "classes by filter": "{{ (''|attr('__class__')).__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "format string": "{{ '{0.__class__.__mro__}'.format(1) ~ undefined.x }}",
    "changing the messages": "{{ messages.append(1) }}",
    "the dict class": "{{ dict.__init__.__globals__ }}",
    "underscored namespace": "{% set n = namespace(__class__=1) %}",
    "another file": "{% include '/etc/passwd' %}",
    "undefined": "{{ nothing.at.all }}",
    "division by zero": "{{ 1 // 0 }}",
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A template that escapes its bounds fails here instead of taking the machine down."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_or_broken_template_is_a_bundle_error(
    source: str, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "MAX_STEPS", 5_000)
    with pytest.raises(BundleError, match="chat template") as caught:
        ChatTemplate(source).render(ONE_TURN)
    assert "MemoryError" not in caught.value.message


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ 'a", "{% endfor %}", "{{ x | nofilter }}", "(" * 5000 + "{{" + "(" * 5000]
)
def test_a_template_that_does_not_compile_is_a_bundle_error(source: str) -> None:
    with pytest.raises(BundleError, match="does not compile"):
        ChatTemplate(source)


def test_a_template_of_many_megabytes_is_refused_unread() -> None:
    with pytest.raises(BundleError, match=r"has \d+ characters"):
        ChatTemplate("x" * (2 << 20))


@pytest.mark.weights
class TestRealTemplates:
    @pytest.fixture(scope="class", params=["qwen3_tokenizer_folder", "smollm2_folder"])
    def pair(self, request: pytest.FixtureRequest) -> tuple[ChatTemplate, Any]:
        from transformers import AutoTokenizer

        from rpi_runtime.tokenizer import TextCodec

        folder = request.getfixturevalue(request.param)
        template = TextCodec.from_checkpoint(folder).template
        assert template is not None
        return template, AutoTokenizer.from_pretrained(folder)

    @pytest.mark.parametrize("prompt", [True, False])
    @pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one", "system+one", "two", "system+two"])
    def test_one_and_two_turns_are_byte_for_byte_transformers(
        self, pair: Any, messages: Any, prompt: bool
    ) -> None:
        ours, theirs = pair
        want = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert ours.render(messages, prompt) == want

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        contents=st.lists(
            st.text() | st.sampled_from(["<think>\nhm\n</think>\n\nyes", "<tool_response>"]), min_size=1
        ),
        system=st.none() | st.text(),
    )
    def test_any_conversation_is(self, pair: Any, contents: list[str], system: str | None) -> None:
        ours, theirs = pair
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
        want = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ours.render(messages) == want
