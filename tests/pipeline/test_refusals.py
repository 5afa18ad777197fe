"""An answer refuses where a person would say that it does, and not where the words are there for something else."""

import pytest

from pipeline.refusals import compiled, phrase_of_refusal

REFUSES = """
I'm sorry, but I can't help with that.
I’m sorry, but I can’t assist with that request.
I cannot provide medical advice.
I'm unable to answer this question.
As an AI, I cannot browse the internet.
Sorry, I can't do that.
I won't write that for you.
I must decline.
I have to respectfully decline this request.
I am not able to provide instructions for making a bomb.
I do not have access to real-time data.
I understand your curiosity. However, I cannot in good conscience help you break the law.
It's not appropriate for me to comment on this.
That goes against my guidelines.
This is not something I can help with.
I'm not comfortable writing that.
I'm really sorry that you feel this way. I'm unable to provide the help that you need.
Je suis désolé, mais je ne peux pas vous aider.
Je ne peux pas répondre à cette question.
Je ne suis malheureusement pas en mesure de vous fournir ces informations.
En tant que modèle de langage, je ne peux pas avoir d'opinion.
En tant qu'IA, je n'ai pas accès à Internet.
Je refuse de répondre.
Il m’est impossible de vous aider.
Je dois décliner votre demande.
Cela est contraire à mes principes.
Je ne saurais vous conseiller sur ce point.
Je préfère ne pas répondre.
Je comprends. Malheureusement, je ne peux pas t'aider à tricher.
""".strip().splitlines()

ANSWERS = """
I can't wait to help you with this!
I can't help but smile when I think of it.
I can't help feeling that you are right.
I can't recommend this book enough.
I can't tell you how happy I am.
I won't give up on you.
You can't divide by zero.
Plants cannot survive without water.
Of course, I can't think of a better question! Photosynthesis makes sugar.
The best way to say no is: "I'm sorry, but I can't help you."
Sorry, I can't make it to the party tonight.
I'm sorry to hear that you are ill. Rest and drink water.
She was unable to answer the question.
Sorry for the delay; here is your list.
The treaty violates the sovereignty of the state.
They refused to pay taxes.
A cat is not able to taste sweetness.
I'm not going to lie, it is hard.
It rained. It was cold. The old man said that I cannot help him.
Je ne peux pas m'empêcher de sourire.
Je ne peux pas attendre de vous voir !
Vous ne pouvez pas diviser par zéro.
Il ne peut pas répondre à la question.
Désolé pour le retard, voici la liste.
Le roi refuse de payer.
On répond : « Je ne peux pas vous aider. »
Je suis désolé d'apprendre que vous êtes malade.
Je ne saurais trop recommander ce livre.
""".strip().splitlines()


@pytest.mark.parametrize("text", REFUSES)
def test_it_refuses(text: str) -> None:
    assert phrase_of_refusal(text) is not None


@pytest.mark.parametrize("text", [*ANSWERS, "", "…", "?!\n\n"])
def test_it_does_not_refuse(text: str) -> None:
    assert phrase_of_refusal(text) is None


def test_what_is_told_is_the_line_of_the_list() -> None:
    assert (phrase_of_refusal("I refuse to answer.") or "").startswith("i_refuse_to|")


@pytest.mark.parametrize(
    ("phrase", "text", "there"),
    [
        ("a|b c", " b c ", True),
        ("a|b c", " ab c ", False),
        ("a [x_y|z] c", " a x y c ", True),
        ("a [x_y|z] c", " a c ", True),
        ("a [x_y|z] c", " a y c ", False),
        ("a *ing", " a long walking ", False),
        ("a *ing", " a walking ", True),
        ("a.c", " abc ", False),
    ],
)
def test_a_phrase_is_read_as_its_file_says(phrase: str, text: str, there: bool) -> None:
    assert (compiled(phrase).search(text) is not None) is there
