"""A grammar of simple English that knows where its sentences can be broken.

Constructions in which a break could happen to give another grammatical sentence are
left out; the comments name them.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from examples import lexicon
from examples.lexicon import Nouns, Verb


class Word(NamedTuple):
    """A word of a sentence, with what a break may make of it."""

    text: str
    kind: str = ""
    """What it is to its neighbours, for the breaks of their order."""
    other_number: str = ""
    """A verb's form under a subject of the other number, where it differs."""
    wrong_forms: tuple[str, ...] = ()
    """Forms of a verb that its auxiliary does not allow."""
    singular: bool = False
    """Of a determiner: its noun is singular and cannot stand without one."""


Sentence = list[Word]


class Grammar:
    """Makes grammatical sentences, drawing from the generator it is given."""

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
        """A subject, sometimes with a noun between it and its verb, and a predicate."""
        plural = self.chance(0.5)
        return [*self.subject(plural), *self.predicate(plural), Word(".")]

    def question(self) -> Sentence:
        """A question with its auxiliary before the subject."""
        plural = self.chance(0.5)
        auxiliary, inflect = self.auxiliary(plural, question=True)
        opening = [Word(self.rng.choice(lexicon.QUESTION_WORDS))]
        verb, complement = self.verb_and_complement()
        return [
            *(opening if self.chance(0.4) else []),
            auxiliary,
            *self.subject(plural, relatives=False),
            inflect(verb),
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
            return keep_determiners([*first, Word("and"), *second])
        noun = self.noun_phrase(lexicon.BEINGS, plural)
        modifier = self.rng.random()
        if modifier < 0.2:
            return [*noun, *self.prepositional_phrase()]
        if relatives and modifier < 0.3:
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
            first, second = (self.simple(plural, short=True) for _ in range(2))
            return keep_determiners([*first, Word("and"), *second])
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
        auxiliary, inflect = self.auxiliary(plural)
        verb, complement = self.verb_and_complement(short)
        if auxiliary.text in ("do", "does", "did") or self.chance(0.2):
            between = [Word("not", "not")]
        elif self.chance(0.2):
            between = [Word(self.rng.choice(lexicon.EARLY_ADVERBS))]
        else:
            between = []
        return [auxiliary, *between, inflect(verb), *complement]

    def auxiliary(
        self, plural: bool, question: bool = False
    ) -> tuple[Word, Callable[[Verb], Word]]:
        """An auxiliary, and what gives the verb behind it its form.

        Over all auxiliaries a form is about as often the wrong one as the right one, or
        the words alone would give the break away. A participle is never made to follow
        "be", where it could be a passive, nor an "-ing" to follow "have", where it
        could be a noun.
        """
        name = self.rng.choice(("will", "do", "have", "be"))
        past = self.chance(0.3)
        forms, right, wrong = {
            "will": (("will",), "base", ("participle", "ing")),
            "do": (("did",) if past else ("does", "do"), "base", ("participle", "ing")),
            "have": (("had",) if past else ("has", "have"), "participle", ("base",)),
            "be": (("was", "were") if past else ("is", "are"), "ing", ("base",)),
        }[name]
        if question and name == "have":
            wrong = ()  # "Have the girls borrow it?"

        def inflect(verb: Verb) -> Word:
            wrong_forms = tuple(getattr(verb, form) for form in wrong)
            return Word(getattr(verb, right), right, wrong_forms=wrong_forms)

        kind = "modal" if name == "will" else "auxiliary"
        if len(forms) == 1:
            return Word(forms[0], kind), inflect
        return Word(forms[plural], kind, forms[not plural]), inflect

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


def keep_determiners(words: Sentence) -> Sentence:
    """Forbids to break the determiners of what is joined by "and".

    "The cat and dog" is grammatical, and so is "finds the cats and frightened dog".
    """
    return [word._replace(singular=False) for word in words]
