"""Real tokenizers of a few dozen letters, one of each habit with special tokens."""

from string import ascii_lowercase

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import NllbTokenizer, PreTrainedTokenizerFast, T5Tokenizer

LETTERS = [*ascii_lowercase, " ", "▁"]
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
VOCABULARY = {token: number for number, token in enumerate([*SPECIAL, *LETTERS])}


def _letters(template: str | None = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(VOCABULARY, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if template:
        special = [(token, VOCABULARY[token]) for token in SPECIAL]
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=special
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_tokenizer(habit: str):
    """Return a tokenizer that sets no special tokens, or those that "bos", "eos", … models do."""
    if habit == "t5":  # eos, and sentinels.
        pieces = ["<pad>", "</s>", "<unk>", *LETTERS]
        return T5Tokenizer(vocab=[(piece, -float(bool(i > 2))) for i, piece in enumerate(pieces)])
    if habit == "nllb":  # Language token, text, eos.
        return NllbTokenizer(vocab=VOCABULARY, merges=[])
    templates = {"none": None, "bos": "<s> $A", "eos": "$A </s>", "both": "<s> $A </s>"}
    return _letters(templates[habit])


HABITS = ("none", "bos", "eos", "both", "t5", "nllb")
