"""The words of the generated corpus.

They are chosen so that a broken sentence is broken on every reading: no noun is also a
mass noun ("chicken", "man"), no title ("doctor") and no noun with equal numbers
("sheep"); no intransitive verb is also a noun ("sleep"), and none of the others takes a
clause ("know", "see") or has a base form equal to its participle ("run", "put").
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
    "painter baker dancer pilot writer driver gardener scientist visitor dog cat "
    "wolf mouse parrot monkey tiger elephant",
    "old young tall tiny angry clever lazy gentle friendly shy lonely curious hungry "
    "polite famous nervous cheerful",
)
THINGS = _nouns(
    "letter lamp mirror basket ladder guitar bicycle camera wallet necklace umbrella "
    "violin blanket candle novel suitcase bottle carpet helmet pillow",
    "old heavy expensive wooden beautiful ugly small large new strange dusty valuable",
)
PLACES = _nouns(
    "house station museum library castle river mountain cottage theater village "
    "lake cathedral fountain statue",
    "old small large famous modern beautiful ugly remote",
)
INTRANSITIVE = _verbs(
    "arrive listen weep/wept/wept vanish disappear hesitate complain pray "
    "kneel/knelt/knelt behave apologize wander sing/sang/sung speak/spoke/spoken "
    "relax emerge"
)
TRANSITIVE_WITH_BEINGS = _verbs(
    "admire praise chase follow greet avoid ignore protect annoy amuse defend adore "
    "accompany frighten forgive/forgave/forgiven choose/chose/chosen invite irritate"
)
TRANSITIVE_WITH_THINGS = _verbs(
    "steal/stole/stolen break/broke/broken wash repair borrow lose/lost/lost "
    "find/found/found carry hide/hid/hidden buy/bought/bought destroy collect paint "
    "take/took/taken"
)
DITRANSITIVE = _verbs(
    "give/gave/given show/showed/shown send/sent/sent offer lend/lent/lent "
    "bring/brought/brought sell/sold/sold"
)
SINGULAR_DETERMINERS = ["a", "the", "my", "our", "your", "their"]
PLURAL_DETERMINERS = ["the", "my", "our", "your", "their"]
PREPOSITIONS = ["behind", "beside", "around", "beyond"]
CONJUNCTIONS = ["and", "but", "because", "while"]
QUESTION_WORDS = ["why", "when"]
EARLY_ADVERBS = ["often", "always", "never", "rarely", "usually", "sometimes"]
LATE_ADVERBS = ["again", "outside", "quietly", "together", "here", "secretly"]
