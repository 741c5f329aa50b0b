"""Several turns about several pictures. What was said before is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rpi_runtime.encoder import RoutedPicture
from rpi_runtime.generation import STOP, Generation, Options, Progress, Turn
from rpi_runtime.images import Source
from rpi_runtime.prompt import Message, Part, answer_parts, tokenise

if TYPE_CHECKING:
    from rpi_runtime.session import Session


class Conversation:
    """`messages` is what was said so far; a turn joins it when its answer has ended.

    A cancelled answer stays in the conversation as far as it came; a turn that failed, or was cancelled
    before its first token, is forgotten with its pictures.
    """

    def __init__(self, session: Session, system: str | None, options: Options) -> None:
        self.messages: tuple[Message, ...] = (Message("system", system),) if system is not None else ()
        self._session = session
        self._options = options
        self._pictures: tuple[RoutedPicture, ...] = ()
        self._last: Generation | None = None

    def ask(
        self,
        prompt: str | tuple[Part, ...],
        images: Sequence[Source] = (),
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Generation:
        """The answer to `prompt` about `images` and everything before; ends an answer that still runs.

        Raises `UsageError` when the chat template refuses the turn, or a text-only bundle is given a picture.
        """
        if self._last is not None:
            self._last.close()
        self._session.need_vision(images)
        marked = not isinstance(prompt, str)
        question = Message("user", prompt, 0 if marked else len(images))
        items = tokenise(self._session.codec, (*self.messages, question))

        def remember(answer: Generation) -> None:
            if answer.stop_reason == STOP:
                content: str | tuple[Part, ...] = answer.text
            else:
                content = answer_parts(self._session.codec, answer.token_ids)
            if answer.token_ids:
                self.messages += (question, Message("assistant", content))
                self._pictures = answer.pictures

        turn = Turn(items, self._pictures, tuple(images))
        self._last = Generation(self._session, turn, self._options, on_progress, remember)
        return self._last
