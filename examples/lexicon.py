"""The words of the generated corpus.

They are chosen so that a broken sentence is broken on every reading. No noun is also a
mass noun ("chicken", "man"), a title ("doctor") or the same in both numbers ("sheep").
No verb's base form is also a common noun ("has wash baskets", "the cat and sleep") or
its participle ("run"), and no verb takes a clause ("know", "see"). Every form is one
word piece of BERT's vocabulary.
"""

from typing import NamedTuple


class Nouns(NamedTuple):
    """Nouns of one kind, and the adjectives that go with them."""

    plurals: dict[str, str]
    adjectives: list[str]


class Verb(NamedTuple):
    """The forms of a verb, by the name of the form."""

    base: str
    third: str
    past: str
    participle: str
    ing: str


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _nouns(nouns: str, adjectives: str) -> Nouns:
    irregular = {"child": "children", "wolf": "wolves", "mouse": "mice"}
    plurals = {noun: irregular.get(noun, _plural(noun)) for noun in nouns.split()}
    return Nouns(plurals, adjectives.split())


def _verbs(text: str) -> list[Verb]:
    """Reads verbs: "arrive", or "sing/sang/sung" for an irregular one."""
    verbs = []
    for base, *irregular in (word.split("/") for word in text.split()):
        stem = base[:-1] if base.endswith("e") else base
        y = base.endswith("y") and base[-2] not in "aeiou"
        regular = (base[:-1] + "i" if y else stem) + "ed"
        past, participle = irregular or (regular, regular)
        # A verb's third person is spelt as a noun's plural is.
        verbs.append(Verb(base, _plural(base), past, participle, stem + "ing"))
    return verbs


BEINGS = _nouns(
    "boy girl child teacher student farmer singer lawyer neighbor tourist sailor "
    "painter dancer pilot writer driver scientist visitor artist engineer dog cat "
    "wolf mouse monkey tiger elephant",
    "old young tall tiny angry clever lazy gentle friendly shy lonely curious hungry "
    "polite famous nervous cheerful",
)
THINGS = _nouns(
    "letter lamp mirror basket guitar bicycle camera violin blanket candle novel "
    "bottle carpet helmet pillow hat jacket sword engine",
    "old heavy expensive wooden beautiful ugly small large new strange dusty valuable",
)
PLACES = _nouns(
    "house station museum library castle river mountain cottage theater village "
    "lake temple fountain statue",
    "old small large famous modern beautiful ugly remote",
)
INTRANSITIVE = _verbs(
    "arrive disappear sing/sang/sung speak/spoke/spoken emerge survive perform "
    "proceed succeed compete"
)
TRANSITIVE_WITH_BEINGS = _verbs(
    "follow avoid ignore protect choose/chose/chosen invite join identify threaten "
    "encourage marry attract"
)
TRANSITIVE_WITH_THINGS = _verbs(
    "steal/stole/stolen lose/lost/lost buy/bought/bought seek/sought/sought destroy "
    "collect examine remove replace receive preserve deliver"
)
DITRANSITIVE = _verbs(
    "give/gave/given send/sent/sent bring/brought/brought sell/sold/sold"
)
# The more frequent ones several times.
SINGULAR_DETERMINERS = ["a", "a", "a", "the", "the", "the", "my", "our", "their"]
PLURAL_DETERMINERS = ["the", "the", "the", "the", "my", "our", "their"]
PREPOSITIONS = ["behind", "beside", "around", "beyond"]
CONJUNCTIONS = ["and", "but", "because", "while"]
QUESTION_WORDS = ["why", "when"]
EARLY_ADVERBS = ["often", "always", "never", "rarely", "usually", "sometimes"]
LATE_ADVERBS = ["again", "outside", "quietly", "here", "secretly", "twice"]
