"""What the page says, in English and French. Keys are the same in both; `{}` is filled in by the page."""

from collections.abc import Mapping

ENGLISH = {
    "title": "Which answer is better?",
    "who": "Your name",
    "who_hint": "Your votes are kept under this name. A short name is enough; not an e-mail address.",
    "start": "Start",
    "change": "Change",
    "language": "Français",
    "conversation": "Prompt",
    "user": "User",
    "assistant": "Assistant",
    "system": "System",
    "left": "Answer 1",
    "right": "Answer 2",
    "tie": "Equal",
    "skip": "Skip",
    "undo": "Undo",
    "note": "Note",
    "keys_list": "← or 1, → or 2 · = equal · S skip · U undo · N note · Esc leaves the note",
    "progress": "{done} of {needed} votes",
    "mine": "{mine} by you",
    "skipped": "{skipped} skipped",
    "saved": "Saved.",
    "saving": "Saving…",
    "undone": "Taken back. You had chosen: {choice}.",
    "finished": "Nothing is left for you. Thank you.",
    "finished_hint": "Votes are saved. You can close this page, or take the last one back.",
    "failed": "Not saved: the server does not answer. It is tried again by itself; keep this page open.",
    "unknown_pair": "This pair is no longer part of the run. Load the page again.",
    "bad_name": "A name has 1 to 60 characters and no @.",
    "refused": "Not saved: the server refused it. Load the page again from the address in the terminal.",
    "disk": "Not saved: the votes cannot be written to the disk. See the terminal.",
    "no_script": "This page needs JavaScript.",
}

FRENCH = {
    "title": "Quelle réponse est la meilleure ?",
    "who": "Votre nom",
    "who_hint": "Vos votes sont gardés sous ce nom. Un nom court suffit ; pas d’adresse électronique.",
    "start": "Commencer",
    "change": "Changer",
    "language": "English",
    "conversation": "Question",
    "user": "Utilisateur",
    "assistant": "Assistant",
    "system": "Système",
    "left": "Réponse 1",
    "right": "Réponse 2",
    "tie": "Égalité",
    "skip": "Passer",
    "undo": "Annuler",
    "note": "Remarque",
    "keys_list": "← ou 1, → ou 2 · = égalité · S passer · U annuler · N remarque · Échap quitte la remarque",
    "progress": "{done} votes sur {needed}",
    "mine": "dont {mine} de vous",
    "skipped": "passées : {skipped}",
    "saved": "Enregistré.",
    "saving": "Enregistrement…",
    "undone": "Annulé. Vous aviez choisi : {choice}.",
    "finished": "Il ne reste rien pour vous. Merci.",
    "finished_hint": "Les votes sont enregistrés. Vous pouvez fermer cette page, ou annuler le dernier.",
    "failed": "Pas enregistré : le serveur ne répond pas. Un nouvel essai est automatique ; gardez cette page ouverte.",
    "unknown_pair": "Cette paire ne fait plus partie de ce travail. Rechargez la page.",
    "bad_name": "Un nom a de 1 à 60 caractères, sans @.",
    "refused": "Pas enregistré : le serveur a refusé. Rouvrez la page par l’adresse donnée dans le terminal.",
    "disk": "Pas enregistré : les votes ne peuvent pas être écrits sur le disque. Voir le terminal.",
    "no_script": "Cette page a besoin de JavaScript.",
}

WORDS: Mapping[str, Mapping[str, str]] = {"en": ENGLISH, "fr": FRENCH}


def language(chosen: str | None, accepted: str) -> str:
    """The language that was chosen, or the one that the browser likes best of those there are; English otherwise.

    Args:
        accepted: an Accept-Language header, such as `fr-CH, fr;q=0.9, en;q=0.8`.
    """
    if chosen in WORDS:
        return str(chosen)
    liked: list[tuple[float, int, str]] = []
    for place, part in enumerate(accepted.split(",")):
        tag, _, rest = part.strip().partition(";")
        weight = rest.strip().removeprefix("q=") if rest else "1"
        name = tag.strip().split("-")[0].lower()
        if name in WORDS and weight.replace(".", "", 1).isdigit() and float(weight) > 0:
            liked.append((-float(weight), place, name))
    return min(liked)[2] if liked else "en"
