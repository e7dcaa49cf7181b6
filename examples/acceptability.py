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
from examples.lexicon import Nouns, Verb


class Word(NamedTuple):
    """A word in a sentence, with what a break may make of it."""

    text: str
    kind: str = ""
    other_number: str = ""
    """A verb's form under a subject of the other number, where it differs."""
    wrong_forms: tuple[str, ...] = ()
    """Forms of a verb that its auxiliary does not allow."""
    singular: bool = False
    """Of a determiner: it cannot be left out."""


class Example(NamedTuple):
    """A sentence of the corpus; ``broken_by`` is empty for an acceptable one."""

    sentence: str
    label: str
    broken_by: str


Sentence = list[Word]
BE_FORMS = {False: ("is", "are"), True: ("was", "were")}


class Grammar:
    """Makes grammatical sentences with a random generator of its own.

    Constructions in which a break could happen to give another grammatical sentence
    are left out; the comments name them.
    """

    def __init__(self, rng: random.Random):
        self.rng = rng

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def sentence(self) -> Sentence:
        """A sentence, its full stop or question mark included."""
        make = self.rng.choices(
            (self.statement, self.question, self.two_clauses), (6, 2, 1)
        )[0]
        return make()

    def statement(self) -> Sentence:
        """A subject, often with a noun between it and its verb, and a predicate."""
        plural = self.chance(0.5)
        return [*self.subject(plural), *self.predicate(plural), Word(".")]

    def question(self) -> Sentence:
        """A question with its auxiliary before the subject."""
        plural = self.chance(0.5)
        auxiliary, inflect, kind = self.auxiliary(plural, question=True)
        opening = [Word(self.rng.choice(lexicon.QUESTION_WORDS))]
        verb, complement = self.verb_and_complement()
        return [
            *(opening if self.chance(0.4) else []),
            auxiliary,
            *self.subject(plural, relatives=False),
            inflect(verb, kind),
            *complement,
            Word("?"),
        ]

    def two_clauses(self) -> Sentence:
        """Two short statements joined by a conjunction."""
        first, second = (
            [*self.noun_phrase(lexicon.BEINGS, plural), *self.predicate(plural, True)]
            for plural in (self.chance(0.5), self.chance(0.5))
        )
        conjunction = Word(self.rng.choice(lexicon.CONJUNCTIONS))
        return [*first, conjunction, *second, Word(".")]

    def subject(self, plural: bool, relatives: bool = True) -> Sentence:
        """A noun phrase, plain or with a phrase or relative clause behind it."""
        if plural and self.chance(0.15):
            first, second = (
                self.noun_phrase(lexicon.BEINGS, self.chance(0.5)) for _ in range(2)
            )
            return [*first, Word("and"), *second]
        noun = self.noun_phrase(lexicon.BEINGS, plural)
        modifier = self.rng.random()
        if modifier < 0.4:
            return [*noun, *self.prepositional_phrase()]
        if relatives and modifier < 0.6:
            return [*noun, *self.relative_clause(plural)]
        return noun

    def noun_phrase(self, nouns: Nouns, plural: bool) -> Sentence:
        """A determiner, an adjective or none, and a noun; some plurals are bare."""
        words = [self.noun(nouns, plural)]
        if self.chance(0.35):
            words.insert(0, Word(self.rng.choice(nouns.adjectives)))
        if not plural or self.chance(0.85):
            words.insert(0, self.determiner(plural))
        return words

    def noun(self, nouns: Nouns, plural: bool) -> Word:
        """A noun by itself."""
        singular = self.rng.choice(list(nouns.plurals))
        return Word(nouns.plurals[singular] if plural else singular, "noun")

    def determiner(self, plural: bool) -> Word:
        """A determiner that cannot stand alone, as "these" and "her" could."""
        texts = lexicon.PLURAL_DETERMINERS if plural else lexicon.SINGULAR_DETERMINERS
        return Word(self.rng.choice(texts), "determiner", singular=not plural)

    def prepositional_phrase(self) -> Sentence:
        """A place, or a companion."""
        nouns = self.rng.choice((lexicon.BEINGS, lexicon.PLACES))
        preposition = Word(self.rng.choice(lexicon.PREPOSITIONS), "preposition")
        return [preposition, *self.noun_phrase(nouns, self.chance(0.5))]

    def relative_clause(self, plural: bool) -> Sentence:
        """A relative clause on its subject or its object.

        It has no auxiliary: "who the boys will admire sleeps" with its verbs' order
        changed is "who the boys admire will sleep".
        """
        past = self.chance(0.3)
        verb, complement = self.verb_and_complement(short=True)
        if verb in lexicon.TRANSITIVE_WITH_BEINGS and self.chance(0.5):
            other_plural = self.chance(0.5)
            other = self.noun_phrase(lexicon.BEINGS, other_plural)
            return [Word("who"), *other, self.finite(verb, other_plural, past)]
        return [Word("who"), self.finite(verb, plural, past), *complement]

    def predicate(self, plural: bool, short: bool = False) -> Sentence:
        """A verb with or without an auxiliary, what belongs to it, and adverbs."""
        if not short and self.chance(0.12):
            return [*self.simple(plural, True), Word("and"), *self.simple(plural, True)]
        make = self.rng.choice((self.simple, self.compound))
        words = make(plural, short)
        if not short and self.chance(0.15):
            words.append(Word(self.rng.choice(lexicon.LATE_ADVERBS)))
        return words

    def simple(self, plural: bool, short: bool = False) -> Sentence:
        """A predicate of one verb."""
        verb, complement = self.verb_and_complement(short)
        adverb = [Word(self.rng.choice(lexicon.EARLY_ADVERBS))]
        return [
            *(adverb if self.chance(0.2) else []),
            self.finite(verb, plural, past=self.chance(0.3)),
            *complement,
        ]

    def compound(self, plural: bool, short: bool = False) -> Sentence:
        """A predicate with an auxiliary, sometimes negated."""
        auxiliary, inflect, kind = self.auxiliary(plural)
        verb, complement = self.verb_and_complement(short)
        if auxiliary.text in ("do", "does", "did") or self.chance(0.2):
            between = [Word("not", "not")]
        elif self.chance(0.2):
            between = [Word(self.rng.choice(lexicon.EARLY_ADVERBS))]
        else:
            between = []
        return [auxiliary, *between, inflect(verb, kind), *complement]

    def auxiliary(
        self, plural: bool, question: bool = False
    ) -> tuple[Word, Callable[[Verb, str], Word], str]:
        """An auxiliary, and how the verb behind it is inflected.

        The wrong forms are balanced: over all auxiliaries each form is as often the
        wrong one as the right one, or the forms alone would give the break away. There
        is no participle behind "be", which could be a passive, and no "-ing" behind
        "have", which could be a noun.
        """
        name = self.rng.choice(("will", "do", "have", "be"))
        past = self.chance(0.3)
        if name == "be":
            forms, right = BE_FORMS[past], "ing"
        elif name == "have":
            forms, right = (("had",) if past else ("has", "have")), "participle"
        elif name == "do":
            forms, right = (("did",) if past else ("does", "do")), "base"
        else:
            forms, right = ("will",), "base"
        number = plural and len(forms) == 2
        other = forms[not number] if len(forms) == 2 else ""
        word = Word(forms[number], "modal" if name == "will" else "auxiliary", other)
        # "Have the girls carry it?" is what a wrong form would make of a question.
        breakable = not (question and name == "have")
        return word, self.behind_auxiliary if breakable else self.as_it_is, right

    def behind_auxiliary(self, verb: Verb, right: str) -> Word:
        """A verb in the form that its auxiliary asks for."""
        wrong = ("participle", "ing") if right == "base" else ("base",)
        wrong_forms = tuple(getattr(verb, form) for form in wrong)
        return Word(getattr(verb, right), right, wrong_forms=wrong_forms)

    def as_it_is(self, verb: Verb, right: str) -> Word:
        """A verb behind an auxiliary, which no break may change."""
        return Word(getattr(verb, right))

    def finite(self, verb: Verb, plural: bool, past: bool) -> Word:
        """A verb without an auxiliary."""
        if past:
            return Word(verb.past)
        forms = (verb.third, verb.base)
        return Word(forms[plural], "present", forms[not plural])

    def verb_and_complement(self, short: bool = False) -> tuple[Verb, Sentence]:
        """A verb and the objects or the place that go with it."""
        valency = self.rng.choices(
            ("intransitive", "being", "thing", "two"), (3, 3, 3, 0 if short else 2)
        )[0]
        plural = self.chance(0.5)
        if valency == "intransitive":
            place = [] if short or self.chance(0.6) else self.prepositional_phrase()
            return self.rng.choice(lexicon.INTRANSITIVE), place
        if valency == "being":
            verb = self.rng.choice(lexicon.TRANSITIVE_WITH_BEINGS)
            return verb, self.noun_phrase(lexicon.BEINGS, plural)
        if valency == "thing":
            verb = self.rng.choice(lexicon.TRANSITIVE_WITH_THINGS)
            return verb, self.noun_phrase(lexicon.THINGS, plural)
        verb = self.rng.choice(lexicon.DITRANSITIVE)
        receiver = self.noun_phrase(lexicon.BEINGS, self.chance(0.5))
        if self.chance(0.5):
            given = self.noun_phrase(lexicon.THINGS, plural)
            return verb, [*given, Word("to"), *receiver]
        # The thing is plural and has its determiner: "the girl (a) letter" would
        # otherwise be a compound noun.
        given = [self.determiner(plural=True), self.noun(lexicon.THINGS, plural=True)]
        return verb, [*receiver, *given]


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
    places = [i for i, word in enumerate(words) if word.singular]
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

WEIGHTS = (4, 3, 1, 2)


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
            if broken is None:
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
