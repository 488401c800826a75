"""Write the page of the book on the paper's models: python tests/paper_models_page.py."""

from pathlib import Path

from lrc.models import paper_models

PAGE = Path(__file__).resolve().parent.parent / "book" / "paper_models.md"
# The table stands between this line and the next that is empty.
MARK = "<!-- written by tests/paper_models_page.py -->\n"

COLUMNS = {
    "name": "model",
    "hub_id": "on the hub",
    "layers": "layers",
    "moe_layers": "with experts",
    "experts": "experts",
    "top_k": "top-k",
    "shared_experts": "shared",
    "native_class": "class",
    "transformers_5": "transformers 5",
    "transformers_4": "4.57",
    "reason": "why, or what is converted",
}


def table() -> str:
    """The registry in Markdown, sorted by name."""
    models = paper_models().sort_values("name", key=lambda names: names.str.lower())
    rows = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    for model in models[list(COLUMNS)].astype(object).fillna("").itertuples(index=False):
        cells = model._asdict()
        cells["hub_id"] = f"`{cells['hub_id']}`"
        if cells["native_class"]:
            cells["native_class"] = f"`{cells['native_class']}`"
        rows.append([str(cell) for cell in cells.values()])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, after = text.partition(MARK)
    return before + MARK + table() + "\n" + after.partition("\n\n")[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
