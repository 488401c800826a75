"""The paper's twenty models and seven variants: built in their real shapes, loaded, traced."""

import lrc
from lrc.models import paper_models

VARIANTS = {
    "llamamoe": {"llamamoes"},
    "llamamoe2": {"llamamoe2s"},
    "olmoe": {"olmoesft", "olmoedpo", "olmoeins"},
    "jetmoe": {"jetmoesft", "jetmoechat"},
}


def test_registry_holds_the_published_models():
    table = paper_models()
    published = lrc.published.table("models")
    assert table["model"].tolist() == published["key"].tolist()
    assert table["main"].sum() == 20
    assert set(table.loc[~table["main"], "model"]) == set.union(*VARIANTS.values())
    assert table["hub_id"].str.fullmatch(r"[\w-]+/[\w.-]+").all()
    assert table["hub_id"].is_unique
    assert set(table["transformers_5"]) <= {"native", "converted", "refused"}
    assert set(table["transformers_4"]) <= {"native", "converted", "own code"}
    plain = (table["transformers_5"] == "native") & (table["transformers_4"] == "native")
    assert (plain == (table["reason"] == "")).all()
    no_class = (table["transformers_5"] == "refused") & (table["transformers_4"] == "own code")
    assert (no_class == table["native_class"].isna()).all()
