import itertools
import re

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from examples import acceptability, lexicon


def word_classes() -> dict[str, frozenset[str]]:
    """Everything that each word of the lexicon can be."""
    listed = [
        *((text, "adverb") for text in lexicon.EARLY_ADVERBS + lexicon.LATE_ADVERBS),
        *((text, "conjunction") for text in lexicon.CONJUNCTIONS),
        *((text, "preposition") for text in lexicon.PREPOSITIONS),
        *((text, "why") for text in lexicon.QUESTION_WORDS),
        *((text, "determiner s") for text in ["an", *lexicon.SINGULAR_DETERMINERS]),
        *((text, "determiner p") for text in lexicon.PLURAL_DETERMINERS),
        *((text, text) for text in ("and", "who", "not", "to", "will", ".", "?")),
    ]
    for be, do, have, number in (
        (("is", "was"), ("does", "did"), ("has", "had"), "s"),
        (("are", "were"), ("do", "did"), ("have", "had"), "p"),
    ):
        for name, texts in (("be", be), ("do", do), ("have", have)):
            listed += [(text, f"{name} {number}") for text in texts]
    for nouns in (lexicon.BEINGS, lexicon.THINGS, lexicon.PLACES):
        listed += [(text, "adjective") for text in nouns.adjectives]
        for singular, plural in nouns.plurals.items():
            listed += [(singular, "noun s"), (plural, "noun p")]
    for verbs, valency in (
        (lexicon.INTRANSITIVE, 0),
        (lexicon.TRANSITIVE_WITH_BEINGS, 1),
        (lexicon.TRANSITIVE_WITH_THINGS, 1),
        (lexicon.DITRANSITIVE, 2),
    ):
        for verb in verbs:
            finite_s, finite_p = (verb.third, verb.past), (verb.base, verb.past)
            listed += [(text, f"finite s {valency}") for text in finite_s]
            listed += [(text, f"finite p {valency}") for text in finite_p]
            for form in ("base", "participle", "ing"):
                listed.append((getattr(verb, form), f"{form} {valency}"))
    classes = {}
    for text, word_class in listed:
        classes.setdefault(text, set()).add(word_class)
    return {text: frozenset(found) for text, found in classes.items()}


class Recognizer:
    """A grammar of its own, wider than the generator's.

    It also knows what a broken sentence might turn out to be: a compound noun, "have"
    and "be" without another verb, a passive, a participle before or behind its noun, a
    conjunct without determiner, a relative clause on any noun.
    """

    def __init__(self):
        self.classes = word_classes()
        distinct = sorted(set(self.classes.values()), key=sorted)
        self.letters = {found: chr(0x100 + i) for i, found in enumerate(distinct)}
        self.pattern = re.compile(self.text())

    def accepts(self, sentence: str) -> bool:
        words = re.findall(r"\w+|[.?]", sentence.lower())
        letters = "".join(self.letters[self.classes[word]] for word in words)
        return self.pattern.fullmatch(letters) is not None

    def any(self, *word_classes: str) -> str:
        """A word that can be one of these."""
        found = (c for c in self.letters if c & set(word_classes))
        return f"[{''.join(self.letters[c] for c in found)}]"

    def text(self) -> str:
        one_of = lambda *choices: f"(?:{'|'.join(choices)})"
        maybe = lambda text: f"(?:{text})?"
        word = self.any
        participles = [f"{form} {n}" for form in ("participle", "ing") for n in (0, 1)]
        modifiers = word("adjective", *participles) + "*+" + maybe(word("noun s"))
        singular = word("determiner s") + modifiers + word("noun s")
        plural = maybe(word("determiner p")) + modifiers + word("noun p")
        conjunct = word("and") + one_of(singular, plural, modifiers + word("noun s"))
        bare_pair = word("noun s") + word("and") + word("noun s")
        any_plain = one_of(singular, plural)
        phrase = word("preposition") + any_plain
        adverb = maybe(word("adverb"))

        def predicate(form: str, noun: str) -> str:
            """A verb in this form, its objects, a place and an adverb."""
            two = noun + maybe(one_of(word("to") + noun, noun))
            verbs = (
                word(f"{form} 0"),
                word(f"{form} 1") + noun,
                word(f"{form} 2") + two,
            )
            return one_of(*verbs) + maybe(phrase) + adverb

        def passive(noun: str) -> str:
            gets = maybe(one_of(word("to") + noun, noun))
            verb = one_of(word("participle 1"), word("participle 2") + gets)
            return verb + maybe(phrase) + adverb

        def clause(number: str, noun: str) -> str:
            """All that can follow a subject."""
            have, be = word(f"have {number}"), word(f"be {number}")
            do = one_of(word(f"do {number}") + word("not"), word("will"))
            negation = maybe(word("not")) + adverb
            completed = one_of(predicate("participle", noun), noun + adverb)
            going_on = one_of(predicate("ing", noun), passive(noun), phrase + adverb)
            choices = (
                predicate(f"finite {number}", noun),
                do + negation + predicate("base", noun),
                have + negation + completed,
                be + negation + going_on,
            )
            return adverb + one_of(*choices)

        def behind(number: str) -> str:
            """All that can follow a noun and belongs to it."""
            who = word("who")
            of_object = (
                who + noun + word(f"finite {n} 1")
                for n, noun in (("s", singular), ("p", plural))
            )
            reduced = (passive(any_plain), predicate("ing", any_plain))
            relative = one_of(who + clause(number, any_plain), *of_object, *reduced)
            return maybe(phrase) + maybe(relative)

        subjects = {
            "s": singular + behind("s"),
            "p": one_of(
                plural + behind("p"), one_of(singular, plural) + conjunct, bare_pair
            ),
        }
        noun = one_of(singular + behind("s"), plural + behind("p")) + maybe(conjunct)
        statement = one_of(
            *(
                subjects[n] + clause(n, noun) + maybe(word("and") + clause(n, noun))
                for n in "sp"
            )
        )
        asked = lambda n: one_of(
            one_of(word(f"do {n}"), word("will"))
            + subjects[n]
            + adverb
            + predicate("base", noun),
            word(f"have {n}") + subjects[n] + adverb + predicate("participle", noun),
            word(f"be {n}")
            + subjects[n]
            + adverb
            + one_of(predicate("ing", noun), passive(noun), phrase),
        )
        question = maybe(word("why")) + one_of(asked("s"), asked("p"))
        joined = statement + maybe(word("conjunction") + statement)
        return one_of(joined + word("."), question + word("?"))


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer()


@pytest.fixture(scope="module")
def corpus() -> list[acceptability.Example]:
    return list(itertools.islice(acceptability.examples(seed=0), 3600))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sentence",
    [
        "The girl chosen has the basket.",
        "The elephant disappearing was beside the house.",
        "My tall cat and dog give their neighbors letters.",
        "The boys who the girl ignored will not survive.",
        "Why were the wolves behind our museum singing?",
    ],
)
def test_recognizer_knows_more_than_the_generator(recognizer, sentence):
    assert recognizer.accepts(sentence)


@pytest.mark.slow
def test_every_acceptable_sentence_is_grammatical(recognizer, corpus):
    good = [e.sentence for e in corpus if e.label == "acceptable"]
    assert [sentence for sentence in good if not recognizer.accepts(sentence)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", acceptability.BREAKS)
def test_no_broken_sentence_is_grammatical(recognizer, corpus, name):
    broken = [e.sentence for e in corpus if e.broken_by == name]
    assert len(broken) > 100
    assert [sentence for sentence in broken if recognizer.accepts(sentence)] == []


def test_half_of_the_sentences_are_broken(corpus):
    assert sum(e.label == "unacceptable" for e in corpus) == len(corpus) // 2


def test_no_sentence_occurs_twice(corpus):
    assert len({e.sentence for e in corpus}) == len(corpus)


def vectors_of_words(sentences):
    vectorizer = CountVectorizer(token_pattern=r"\w+|[.?]")
    return vectorizer.fit_transform(sentences)


def vectors_of_lengths(sentences):
    return np.array([[len(s), s.count(" "), s.count(" ") ** 2] for s in sentences])


@pytest.mark.parametrize("vectors", [vectors_of_words, vectors_of_lengths])
def test_neither_words_nor_length_give_the_label_away(corpus, vectors):
    inputs = vectors([e.sentence for e in corpus])
    labels = np.array([e.label for e in corpus])
    model = LogisticRegression(C=0.1, max_iter=1000)
    accuracy = model.fit(inputs[:3000], labels[:3000]).score(
        inputs[3000:], labels[3000:]
    )
    assert accuracy < 0.57


def test_a_seed_gives_the_same_files_always(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        acceptability.write_corpus(tmp_path / name, seed, train=60, validation=20)
    a, b, c = (
        [
            (tmp_path / name / f"{part}.tsv").read_bytes()
            for part in ("train", "validation")
        ]
        for name in "abc"
    )
    assert a == b
    assert a[0] != c[0]


def test_the_command_writes_two_files_that_share_no_sentence(tmp_path, capsys):
    arguments = [str(tmp_path / "new"), "--seed", "5", "--train", "80"]
    acceptability.main([*arguments, "--validation", "40"])
    rows = {}
    for part, number in (("train", 80), ("validation", 40)):
        text = (tmp_path / "new" / f"{part}.tsv").read_text(encoding="utf-8")
        header, *lines = text.splitlines()
        assert header == "sentence\tlabel"
        rows[part] = dict(line.split("\t") for line in lines)
        assert len(rows[part]) == number
        assert set(rows[part].values()) == {"acceptable", "unacceptable"}
    assert rows["train"].keys().isdisjoint(rows["validation"])
    assert "train.tsv with 80 sentences" in capsys.readouterr().out


def test_too_small_a_corpus_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        acceptability.main([str(tmp_path), "--train", "1"])
    assert "--train: must be at least 2, got 1" in capsys.readouterr().err
