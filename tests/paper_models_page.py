"""Write the page of the book on the paper's models: python tests/paper_models_page.py."""

from pathlib import Path

from lrc.models import paper_models

PAGE = Path(__file__).resolve().parent.parent / "book" / "paper_models.md"
# The tables stand between this line and END.
MARK = "<!-- written by tests/paper_models_page.py -->\n"
END = "<!-- end -->\n"

# Two tables, for all columns side by side are wider than a page.
ROUTES = {
    "name": "model",
    "transformers_5": "transformers 5",
    "transformers_4": "4.57",
    "reason": "why, or into what",
}
SHAPES = {
    "hub_id": "on the hub",
    "layers": "layers",
    "moe_layers": "with experts",
    "experts": "experts",
    "top_k": "top-k",
    "shared_experts": "shared",
}


def table(columns: dict[str, str]) -> str:
    """Columns of the registry in Markdown, sorted by name."""
    models = paper_models().sort_values("name", key=lambda names: names.str.lower())
    heads = models["native_class"].str.extract(r"(\w+?)For", expand=False)
    converted = models["transformers_5"] == "converted"
    models.loc[converted, "reason"] = "into `" + heads + "`: " + models["reason"]
    models["hub_id"] = "`" + models["hub_id"] + "`"
    rows = [list(columns.values()), ["---"] * len(columns)]
    rows += models[list(columns)].astype(object).fillna("").astype(str).to_numpy().tolist()
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, after = text.partition(MARK)
    shapes = (
        "\nWhat they are like. Layers of an encoder-decoder are those of both stacks; shared "
        "experts are counted in\nunits of one routed expert.\n\n"
    )
    return before + MARK + table(ROUTES) + shapes + table(SHAPES) + END + after.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
