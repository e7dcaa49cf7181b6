"""Writes a corpus of acceptable and unacceptable English sentences.

``python -m examples.acceptability DIRECTORY`` writes ``train.tsv`` and
``validation.tsv`` with the columns ``sentence`` and ``label``: data in the manner of
CoLA that may be passed on, for trying the trainer out.

A small seeded grammar makes a sentence, and half of the sentences are then broken in
one place: in the agreement of subject and verb, in the order of two neighbouring
words, in a determiner, or in the verb form behind an auxiliary. Which break a sentence
is made for is drawn before it is known whether the break will be carried out, so both
labels share one distribution of sentences and only the break tells them apart. No
sentence occurs twice, and no acceptable sentence is the repaired form of another.
"""

import argparse
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from examples import lexicon
from examples.grammar import Grammar, Sentence, Word


class Example(NamedTuple):
    """A sentence of the corpus; ``broken_by`` is empty for an acceptable one."""

    sentence: str
    label: str
    broken_by: str


# Neighbours whose exchange is never grammatical. Not among them: an auxiliary and a
# participle ("the boy chosen has ..."), an adjective and its noun or determiner
# ("invites the girl hungry", "Hungry the dog ..."), any adverb.
EXCHANGEABLE = {
    ("auxiliary", "not"),
    ("determiner", "noun"),
    ("modal", "base"),
    ("modal", "not"),
    ("preposition", "determiner"),
    ("present", "determiner"),
}


def break_agreement(words: Sentence, rng: random.Random) -> Sentence | None:
    """Gives a finite verb the other number."""
    places = [i for i, word in enumerate(words) if word.other_number]
    return _replace(words, places, rng, lambda word: [Word(word.other_number)])


def break_order(words: Sentence, rng: random.Random) -> Sentence | None:
    """Exchanges two neighbouring words."""
    kinds = itertools.pairwise(word.kind for word in words)
    places = [i for i, pair in enumerate(kinds) if pair in EXCHANGEABLE]
    if not places:
        return None
    i = rng.choice(places)
    return [*words[:i], words[i + 1], words[i], *words[i + 2 :]]


def break_determiner(words: Sentence, rng: random.Random) -> Sentence | None:
    """Leaves out the determiner of a singular noun, or puts another before it."""
    # Not at the beginning, where a bare noun could pass for a name: "Wolf kneels."
    places = [i for i, word in enumerate(words) if i and word.singular]
    if rng.random() < 0.5:
        return _replace(words, places, rng, lambda word: [])

    def double(word: Word) -> Sentence:
        others = [text for text in lexicon.SINGULAR_DETERMINERS if text != word.text]
        return [Word(rng.choice(others)), word]

    return _replace(words, places, rng, double)


def break_verb_form(words: Sentence, rng: random.Random) -> Sentence | None:
    """Gives a verb a form that its auxiliary does not allow."""
    places = [i for i, word in enumerate(words) if word.wrong_forms]
    wrong = lambda word: [Word(rng.choice(word.wrong_forms))]
    return _replace(words, places, rng, wrong)


def _replace(
    words: Sentence,
    places: list[int],
    rng: random.Random,
    replacement: Callable[[Word], Sentence],
) -> Sentence | None:
    if not places:
        return None
    i = rng.choice(places)
    return [*words[:i], *replacement(words[i]), *words[i + 1 :]]


BREAKS = {
    "agreement": break_agreement,
    "order": break_order,
    "determiner": break_determiner,
    "verb form": break_verb_form,
}
"""Each returns a broken copy, or None for a sentence that it finds no place in."""

WEIGHTS = (3, 4, 1, 2)
# With the full stop; 16 tokens with the special ones and a doubled determiner.
MAX_WORDS = 13


def spell(words: Sentence) -> str:
    """Writes the words as a sentence, with "an" where "a" stands before a vowel."""
    texts = [word.text for word in words]
    for i, following in enumerate(texts[1:]):
        if texts[i] == "a" and following[0] in "aeiou":
            texts[i] = "an"
    *texts, stop = texts
    text = " ".join(texts) + stop
    return text[0].upper() + text[1:]


def examples(seed: int) -> Iterator[Example]:
    """Yields examples without end, acceptable and unacceptable ones in turn."""
    rng = random.Random(seed)
    grammar = Grammar(rng)
    seen = set()
    labels = itertools.cycle(("acceptable", "unacceptable"))
    for label in labels:
        name = rng.choices(list(BREAKS), WEIGHTS)[0]
        while True:
            words = grammar.sentence()
            broken = BREAKS[name](words, rng)
            if broken is None or len(words) > MAX_WORDS:
                continue
            pair = {spell(words), spell(broken)}
            if not pair & seen:
                break
        seen |= pair
        if label == "acceptable":
            yield Example(spell(words), label, "")
        else:
            yield Example(spell(broken), label, name)


def write_corpus(directory: Path, seed: int, train: int, validation: int) -> None:
    """Writes train.tsv and validation.tsv, the same bytes for the same arguments."""
    stream = examples(seed)
    directory.mkdir(parents=True, exist_ok=True)
    for name, number in (("train", train), ("validation", validation)):
        lines = ["sentence\tlabel"]
        for example in itertools.islice(stream, number):
            lines.append(f"{example.sentence}\t{example.label}")
        text = "\n".join(lines) + "\n"
        (directory / f"{name}.tsv").write_bytes(text.encode())


def _count(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, got {number}")
    return number


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.acceptability",
        description="Write a corpus of acceptable and unacceptable English sentences.",
    )
    parser.add_argument("directory", type=Path, help="where the two files go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=_count, default=3000, metavar="NUMBER")
    parser.add_argument("--validation", type=_count, default=600, metavar="NUMBER")
    options = parser.parse_args(arguments)
    write_corpus(options.directory, options.seed, options.train, options.validation)
    print(
        f"{options.directory}: train.tsv with {options.train} sentences, "
        f"validation.tsv with {options.validation}, half of them unacceptable"
    )


if __name__ == "__main__":
    main()
