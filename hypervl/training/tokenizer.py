"""A byte-level BPE tokenizer learned from the panels' questions and answers.

Digits stay single tokens, so that a value is copied digit by digit. Special tokens and chat template are
those of the byte tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hypervl.byte_tokenizer import SPECIAL_TOKENS, text_files
from hypervl.text_files import TextFiles
from vqa.panels import vocabulary as words
from vqa.panels.panel import make_panel
from vqa.panels.questions import ask

_PANELS = 300


def panel_tokenizer(vocab_size: int) -> TextFiles:
    """All text files of a checkpoint with the panels' tokenizer. The same size gives the same files."""
    return learn(_corpus(), vocab_size)


def learn(corpus: Iterable[str], vocab_size: int) -> TextFiles:
    """A tokenizer of at most `vocab_size` tokens, special ones included, learned from `corpus`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return text_files(tokenizer)


def _corpus() -> Iterator[str]:
    for number in range(_PANELS):
        for asked in ask(make_panel("train", number), 8):
            yield f"user\n{asked.text}"
            yield f"assistant\n{asked.answer}"
    # Every name as a question and as an answer has it, so that none is cut into letters.
    for word in (*words.MEASURES, *words.DEVICES, *words.ALARMS, *words.PLATES, *words.UNITS):
        for _ in range(20):
            yield f"{word}\n a {word}?"
