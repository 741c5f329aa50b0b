"""The model's own chat template, rendered as transformers renders it, and kept on a short leash.

Same Jinja environment as transformers' `apply_chat_template` (5.23: sandbox, trimmed blocks, loop controls,
`raise_exception`, `strftime_now`, its `tojson`, `{% generation %}` read as a plain block), so that the result
is the same byte for byte. A template comes with a bundle that somebody else may have made, so the work
and the text that it may spend are bounded too: the sandbox alone stops neither an endless loop nor
`'a' * 10**12`.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor
from jinja2.exceptions import SecurityError, TemplateError

from rpi_runtime.errors import BundleError, UsageError

MAX_SOURCE_CHARS = 1 << 20  # published templates stay under 30,000
MAX_STEPS = 100_000  # passes through loops and macros; a few per message are usual
MAX_CHARS = (
    1 << 22
)  # all text that a rendering makes, intermediate values included, beside 64 times the messages'
MAX_PRODUCT = 1 << 28  # of the sizes and numbers given to one filter or method: no result is longer than it

_REMEDY = "The bundle's chat template is broken or hostile: convert the checkpoint again, or ask who made it."


class ChatTemplate:
    """A compiled template. `bos_token` and `eos_token` are spellings, "" where the model has none.

    Raises `BundleError` for a template that does not compile.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise BundleError(
                f"the chat template has {len(source)} characters; at most {MAX_SOURCE_CHARS}", _REMEDY
            )
        self.source = source
        self._environment = _Environment()
        self._names = {k: v for k, v in (("bos_token", bos_token), ("eos_token", eos_token)) if v}
        self._one_at_a_time = threading.Lock()  # the meter belongs to the environment
        try:
            self._template = self._environment.from_string(source)
        except (TemplateError, RecursionError, MemoryError) as error:
            raise BundleError(f"the chat template does not compile: {_text(error)}", _REMEDY) from None

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text. `messages` have `role` and `content`.

        Raises `UsageError` with the template's own words when it refuses the messages (`raise_exception`),
        and `BundleError` when it fails, reaches out of its sandbox, or spends more than its bounds.
        """
        pieces: list[str] = []
        with self._one_at_a_time:
            # A long conversation may cost more than a short one: each operation handles its text again.
            text = sum(len(value) for message in messages for value in message.values())
            self._environment.meter = _Meter(MAX_CHARS + 64 * text)
            try:
                for piece in self._template.generate(
                    messages=[dict(m) for m in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self._names,
                ):
                    pieces.append(piece)
            except _Refused as error:
                raise UsageError(f"the chat template refuses these messages: {_text(error)}") from None
            except Exception as error:  # whatever a template can raise, it is the template's mistake
                raise BundleError(f"the chat template failed: {_text(error)}", _REMEDY) from None
        return "".join(pieces)


class _Refused(TemplateError):
    """Raised by the template itself."""


class _Meter:
    """What one rendering has spent, against what it may."""

    def __init__(self, chars: int) -> None:
        self._chars = chars
        self._steps = MAX_STEPS

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise SecurityError(f"more than {MAX_STEPS} passes through loops")

    def spend(self, chars: int) -> None:
        self._chars -= chars
        if self._chars < 0:
            raise SecurityError("it makes more text than any conversation needs")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """transformers' environment, with every value that can grow charged to `meter`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
            finalize=self.charge,
        )
        self.meter = _Meter(MAX_CHARS)
        self.filters["tojson"] = _tojson
        self.filters = {name: self._metered(function) for name, function in self.filters.items()}
        del self.globals["lipsum"]  # makes text by the megabyte, and no conversation needs it
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        _Metering().visit(tree)
        return tree

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _refuse_wide(left)
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(count, int):
                    self.meter.spend(_size(sequence) * max(count, 0))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            factor = abs(right) if operator == "**" else 1
            if left.bit_length() * factor + right.bit_length() > 4096:
                raise SecurityError("it computes a number of more than 4096 bits")
        return self.charge(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Jinja's own parameter names: a template may pass any keyword.
        if __obj in (__self.charge, __self.step):
            return __obj(*args)
        _refuse_product((getattr(__obj, "__self__", None), *args), kwargs.values())
        return __self.charge(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _refuse_wide(value.__self__)
        return wrapped

    def charge(self, value: Any) -> Any:
        self.meter.spend(_size(value))
        return value

    def step(self, literal_chars: int) -> None:
        self.meter.step()
        self.meter.spend(literal_chars)

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps Jinja's marks of filters that want the context
        def metered(*args: Any, **kwargs: Any) -> Any:
            _refuse_product(args, kwargs.values())
            return self.charge(function(*args, **kwargs))

        return metered


class _Metering(jinja2.visitor.NodeTransformer):
    """Puts a `step` into each loop and macro body and a `charge` around `~`."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        literal = sum(len(data.data) for data in node.find_all(jinja2.nodes.TemplateData))
        self.generic_visit(node)
        step = _environment_call("step", jinja2.nodes.Const(literal), node.lineno)
        node.body.insert(0, jinja2.nodes.ExprStmt(step, lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_For

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _environment_call("charge", node, node.lineno)


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training masks; here it is plain text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Dict:
    """`dict(...)` without the class behind it, whose attributes lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """A `namespace(...)` that keeps no underscored names, which could reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that a template may pass a keyword `self`
        for name in dict(*rest, **kwargs):
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, *rest, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it stores the underscored name {name!r}")


def _environment_call(name: str, argument: jinja2.nodes.Expr, line: int) -> jinja2.nodes.Call:
    attribute = jinja2.nodes.EnvironmentAttribute(name, lineno=line)
    return jinja2.nodes.Call(attribute, [argument], [], None, None, lineno=line)


def _refuse_product(args: Sequence[Any], more: Iterable[Any] = ()) -> None:
    """`replace`, `join`, `center` and all others make at most the product of what they are given.

    The first of `args` is the value at work: it counts by its size, even where it is a number.
    """
    product = max(_size(args[0]), 1) if args else 1
    for value in (*args[1:], *more):
        product *= max(abs(value) if isinstance(value, int) else _size(value), 1)
    if product > MAX_PRODUCT:
        raise SecurityError("a filter or method is given too much to multiply")


def _refuse_wide(pattern: str) -> None:
    """A format may ask for a width of its own, such as `{:1000000000}`."""
    if re.search(r"\d{5}|\*|:[^}]*\{", pattern):
        raise SecurityError("it formats text to a width beyond use")


def _size(value: Any) -> int:
    if isinstance(value, list | tuple):
        return len(value) + sum(len(item) for item in value if isinstance(item, str))
    return len(value) if isinstance(value, str | bytes | dict) else 0


def _raise_exception(message: str) -> None:
    raise _Refused(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter: Jinja's own escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _text(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:500]
