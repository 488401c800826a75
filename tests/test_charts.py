"""Charts: what is drawn is what the table says, and the table guards the picture."""

import subprocess
import sys

import matplotlib as mpl
import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection

import lrc
from lrc import charts, labels
from lrc.style import style, styles

MODELS = ["olmoe", "mixtral", "deepseek2", "qwen"]


@pytest.fixture
def srp():
    """A tidy frame with intervals, as `lrc.srp` returns it, for several models."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        [(model, m) for model in MODELS for m in (4, 16, 64, 256)],
        columns=["model", "segment_length"],
    )
    frame["srp"] = rng.uniform(0.2, 0.8, len(frame))
    return frame.assign(ci_low=frame.srp - 0.02, ci_high=frame.srp + 0.01, unrelated=1)


@pytest.fixture
def curves():
    """Hit rates at 40 cache sizes, of two policies in two layers."""
    rows = [
        (layer, policy, size, size / 8, 1 - np.exp(-size / (8 + layer + len(policy))))
        for layer in (0, 1)
        for policy in ("lru", "belady")
        for size in range(1, 41)
    ]
    return pd.DataFrame(rows, columns=["layer", "policy", "cache_size", "cache_ratio", "hit_rate"])


def drawn_lines(axes):
    """Points of the lines in the axes, without rules and marks that span them."""
    return sorted(
        tuple(map(tuple, line.get_xydata()))
        for line in axes.get_lines()
        if line.get_transform() == axes.transData
    )


def points(frame, x, y):
    return tuple(map(tuple, frame.sort_values(x)[[x, y]].to_numpy(float)))


class TestWhatIsDrawnIsTheTable:
    def test_lines(self, srp):
        chart = charts.lines(srp, "segment_length", "srp", group="model")
        expected = [points(part, "segment_length", "srp") for _, part in srp.groupby("model")]
        assert drawn_lines(chart.figure.axes[0]) == sorted(expected)
        bars = [c for c in chart.figure.axes[0].collections if isinstance(c, LineCollection)]
        drawn = sorted(tuple(segment[:, 1]) for bar in bars for segment in bar.get_segments())
        assert drawn == sorted(zip(srp.ci_low, srp.ci_high, strict=True))
        assert list(chart.table) == ["model", "segment_length", "srp", "ci_low", "ci_high"]
        pd.testing.assert_frame_equal(chart.table, srp[list(chart.table)])

    def test_lines_in_panels(self, curves):
        chart = charts.lines(curves, "cache_ratio", "hit_rate", group="policy", panel="layer")
        for layer, axes in enumerate(chart.figure.axes):
            parts = curves[curves.layer == layer].groupby("policy")
            expected = sorted(points(part, "cache_ratio", "hit_rate") for _, part in parts)
            assert drawn_lines(axes) == expected
            assert axes.get_title(loc="left") == f"layer {layer}"
            rules = [line.get_xdata()[0] for line in axes.get_lines()]
            assert {1, 2, 4} <= set(rules)
        assert len(chart.table) == len(curves)

    def test_ribbon(self, curves):
        one = curves[(curves.layer == 0) & (curves.policy == "lru")]
        one = one.assign(ci_low=one.hit_rate - 0.05, ci_high=one.hit_rate + 0.03)
        axes = charts.lines(one, "cache_ratio", "hit_rate").figure.axes[0]
        corners = axes.collections[0].get_paths()[0].vertices
        for bound in ("ci_low", "ci_high"):
            edge = one[["cache_ratio", bound]].to_numpy()
            assert all((corners == point).all(axis=1).any() for point in edge)

    def test_ranking(self, srp):
        one = srp[srp.segment_length == 16]
        axes = charts.ranking(one, "srp").figure.axes[0]
        names = [label.get_text() for label in axes.get_yticklabels()]
        best_first = one.sort_values("srp", ascending=False)
        assert names == [style(model).label for model in best_first.model]
        drawn = sorted((y, x) for line in drawn_lines(axes) for x, y in line)
        assert [x for _, x in drawn] == list(best_first.srp)

    def test_ranking_of_two_series(self, srp):
        two = srp[srp.segment_length.isin([16, 64])]
        chart = charts.ranking(two, "srp", series="segment_length")
        dots = [x for line in drawn_lines(chart.figure.axes[0]) for x, _ in line]
        assert sorted(dots) == sorted(two.srp)

    @pytest.mark.parametrize("label", [True, False])
    def test_scatter(self, srp, label):
        one = srp[srp.segment_length == 16].assign(activation_sd=[0.1, 0.2, 0.05, 0.4])
        chart = charts.scatter(one, "activation_sd", "srp", label=label)
        drawn = sorted(point for line in drawn_lines(chart.figure.axes[0]) for point in line)
        assert drawn == sorted(zip(one.activation_sd, one.srp, strict=True))
        shown = {text.get_text() for text in chart.figure.axes[0].texts}
        assert shown == ({style(model).label for model in MODELS} if label else set())

    def test_bars(self, srp):
        part = srp[srp.segment_length < 64]
        axes = charts.bars(part, "model", "srp", group="segment_length").figure.axes[0]
        heights = sorted((round(bar.get_x(), 6), bar.get_height()) for bar in axes.patches)
        by_place = part.sort_values(
            ["model", "segment_length"],
            key=lambda c: c.map(MODELS.index) if c.name == "model" else c,
        )
        assert [height for _, height in heights] == list(by_place.srp)
        assert axes.get_ylim()[0] == 0

    def test_heatmap(self, srp):
        shuffled = srp.sample(frac=1, random_state=1)
        chart = charts.heatmap(shuffled, "segment_length", "model", "srp")
        axes = chart.figure.axes[0]
        cells = np.asarray(axes.images[0].get_array())
        columns = list(dict.fromkeys(shuffled.segment_length))
        rows = list(dict.fromkeys(shuffled.model))
        for _, row in srp.iterrows():
            cell = cells[rows.index(row.model), columns.index(row.segment_length)]
            assert cell == row.srp
        assert [t.get_text() for t in axes.get_yticklabels()] == [style(m).label for m in rows]

    @pytest.mark.parametrize("by_use", [False, True])
    def test_routing_map(self, by_use):
        ids = np.array([[0, 3], [3, -1], [5, 2], [3, 2]])
        chart = charts.routing_map(ids, 6, by_use=by_use)
        cells = np.asarray(chart.figure.axes[0].images[0].get_array())
        assert cells.shape == (6, 4)
        expected = np.zeros((4, 6))
        for token, slots in enumerate(ids):
            expected[token, slots[slots >= 0]] = 1
        order = [3, 2, 0, 5, 1, 4] if by_use else range(6)
        assert (cells == expected.T[list(order)]).all()
        assert list(chart.table.experts) == ["0 3", "3", "2 5", "2 3"]


class TestTheTableGuardsThePicture:
    @pytest.mark.parametrize("long", [False, True])
    def test_scaled_data_change_the_text(self, curves, long):
        part = curves if long else curves[:12]
        text = repr(charts.lines(part, "cache_ratio", "hit_rate", group="policy"))
        assert ("checksum" in text) == long
        scaled = part.assign(hit_rate=part.hit_rate * 1.01)
        assert repr(charts.lines(scaled, "cache_ratio", "hit_rate", group="policy")) != text
        noise = part.assign(hit_rate=part.hit_rate + 1e-12)
        assert repr(charts.lines(noise, "cache_ratio", "hit_rate", group="policy")) == text

    def test_a_long_table_is_guarded_in_every_row(self, curves):
        text = repr(charts.lines(curves, "cache_ratio", "hit_rate", group="policy"))
        for row in (1, 77, len(curves) - 1):
            other = curves.copy()
            other.loc[row, "hit_rate"] += 1e-4
            assert repr(charts.lines(other, "cache_ratio", "hit_rate", group="policy")) != text

    def test_rounding(self):
        frame = pd.DataFrame({"model": ["a", "b"], "srp": [-1e-9, 0.123456]})
        assert repr(charts.ranking(frame, "srp")).split() == [
            "model",
            "srp",
            "b",
            "0.1235",
            "a",
            "0.0000",
        ]

    def test_nbval_fails_on_a_scaled_chart(self, tmp_path):
        """The whole way: an executed notebook passes, the same with its numbers scaled fails."""
        from nbclient import NotebookClient

        source = (
            "import pandas as pd\n"
            "from lrc import charts\n"
            "frame = pd.DataFrame({'model': ['olmoe', 'grin'], 'srp': [0.5, 0.25]})\n"
            "charts.ranking(frame, 'srp')"
        )
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        NotebookClient(book, kernel_name="python3").execute()
        output = book.cells[0].outputs[0]
        assert set(output.data) == {"image/png", "text/plain"}
        assert output.metadata["image/png"]["alt"] == "SRP of OLMoE, GRIN-MoE."
        nbformat.write(book, tmp_path / "good.ipynb")
        scaled = "frame = frame.assign(srp=frame.srp * 1.01)\ncharts.ranking"
        book.cells[0].source = source.replace("charts.ranking", scaled)
        nbformat.write(book, tmp_path / "scaled.ipynb")
        command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(tmp_path)]
        options = ["--nbval", "--nbval-current-env", "-p", "no:cacheprovider", str(tmp_path)]
        run = subprocess.run([*command, *options], capture_output=True, text=True)
        assert "1 failed, 1 passed" in run.stdout
        assert "scaled.ipynb" in run.stdout


class TestChart:
    def test_pictures_are_the_same_every_time(self, srp):
        first, second = (
            charts.lines(srp, "segment_length", "srp", group="model")._repr_mimebundle_()
            for _ in range(2)
        )
        assert first == second
        assert first[1]["image/png"]["width"] == 720

    def test_the_users_settings_neither_matter_nor_change(self, srp):
        one = srp[srp.segment_length == 16]
        plain = charts.ranking(one, "srp")._repr_mimebundle_()
        with mpl.rc_context({"font.size": 30, "axes.grid": False, "savefig.bbox": "tight"}):
            before = dict(mpl.rcParams)
            assert charts.ranking(one, "srp")._repr_mimebundle_() == plain
            assert dict(mpl.rcParams) == before

    @pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
    def test_save(self, srp, tmp_path, ending):
        path = tmp_path / f"chart.{ending}"
        charts.ranking(srp[srp.segment_length == 16], "srp").save(path)
        assert path.stat().st_size > 1000

    def test_texts_lie_within_the_figure(self, srp, curves):
        named = srp.assign(model=srp.model.map(lambda key: f"a rather long name, {key}"))
        for chart in (
            charts.lines(srp, "segment_length", "srp", group="model", title="A title"),
            charts.lines(named, "segment_length", "srp", group="model"),
            charts.lines(
                curves, "cache_ratio", "hit_rate", group="policy", panel="layer", title="T"
            ),
            charts.ranking(srp[srp.segment_length == 4], "srp", title="A title"),
            charts.bars(named, "model", "srp", group="segment_length", title="A title"),
            charts.heatmap(named, "segment_length", "model", "srp", title="A title"),
        ):
            figure = chart.figure
            figure.draw_without_rendering()
            ticks = {
                text
                for axes in figure.axes
                for text in (*axes.get_xticklabels(), *axes.get_yticklabels())
            }
            for text in set(figure.findobj(mpl.text.Text)) - ticks:
                if text.get_text():
                    # Of an annotation, the words only: its thread ends at a point.
                    box = mpl.text.Text.get_window_extent(text)
                    assert box.x0 >= -1, text
                    assert box.y0 >= -1, text
                    assert box.x1 <= figure.bbox.x1 + 1, text
                    assert box.y1 <= figure.bbox.y1 + 1, text


class TestErrors:
    def test_missing_column(self, srp):
        with pytest.raises(lrc.LrcError, match="no column 'policy'; it has model, segment_length"):
            charts.lines(srp, "segment_length", "srp", group="policy")

    def test_no_rows(self, srp):
        with pytest.raises(lrc.LrcError, match="nothing to draw: the table has no rows"):
            charts.ranking(srp[:0], "srp")

    def test_no_numbers(self, srp):
        with pytest.raises(lrc.LrcError, match="column 'srp' holds no number"):
            charts.ranking(srp.assign(srp=np.nan), "srp")

    def test_two_rows_for_a_cell(self, srp):
        with pytest.raises(lrc.LrcError, match="same segment_length and model"):
            charts.heatmap(pd.concat([srp, srp]), "segment_length", "model", "srp")

    def test_unknown_highlight(self, srp):
        with pytest.raises(lrc.LrcError, match="cannot highlight 'gpt'"):
            charts.lines(srp, "segment_length", "srp", group="model", highlight=["gpt"])

    def test_nothing_highlighted(self, srp):
        with pytest.raises(lrc.LrcError, match="highlight names no group"):
            charts.lines(srp, "segment_length", "srp", group="model", highlight=[])

    def test_line_without_numbers_has_no_name(self):
        numbers = [0.1, 0.2, np.nan, np.nan]
        table = pd.DataFrame({"x": [1, 2] * 2, "srp": numbers, "g": list("aabb")})
        chart = charts.lines(table, "x", "srp", group="g")
        assert [text.get_text() for text in chart.figure.axes[0].texts] == ["a"]

    def test_routing_map_of_more_experts_than_there_are(self):
        with pytest.raises(lrc.LrcError, match="expert 5 is drawn, but num_experts is 4"):
            charts.routing_map(np.array([[0, 5]]), 4)

    def test_routing_map_of_a_whole_trace(self):
        with pytest.raises(
            lrc.LrcError, match=r"expert ids \[tokens, top_k\].*int64 \[1, 2, 3, 4\]"
        ):
            charts.routing_map(np.zeros((1, 2, 3, 4), dtype=np.int64))


class TestStyle:
    def test_names_of_one_model(self):
        assert style("olmoe") == style("OLMoE-1B-7B-0125") == style("OL") == style("OLMoE")
        assert style("share1") == style("one_shared") == style("1ShrExp")
        assert style("nllb encoder").color == style("NLLB-MoE-54B (decoder)").color
        assert style("nllb encoder").dash != style("nllb decoder").dash

    def test_every_published_model_and_toy_has_a_style_of_its_own(self):
        from lrc import published, toys

        models = published.table("models")
        for names in (
            models[models.main == 1].key,
            published.table("toy_models").key,
            toys.VARIANTS,
        ):
            looks = styles(list(names))
            assert len({(look.color, look.marker) for look in looks.values()}) == len(names)
            assert all(look.color != style("my own model").color for look in looks.values())
        for table, column in (("models", "name"), ("models", "abbr"), ("toy_models", "name")):
            frame = published.table(table)
            if table == "models":
                frame = frame[frame.main == 1]
            for key, name in zip(frame.key, frame[column], strict=True):
                assert style(name) == style(key), name

    def test_a_model_keeps_its_colour_in_any_company(self):
        for company in (["olmoe"], ["mine", "olmoe", "yours"], MODELS):
            assert styles(company)["olmoe"] == style("olmoe")
        mine = styles(["mine", "olmoe", "yours"])
        assert mine["mine"].color != mine["yours"].color

    @pytest.mark.parametrize("names", [["lru", "lfu", "belady", "sch"], [4, 16, 64, 256]])
    def test_colours_differ_without_red_or_green_cones(self, names):
        """Machado, Oliveira and Fernandes (2009), severity 1: deuteranopia and protanopia."""
        matrices = (
            [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
            [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        )
        colors = np.array([mpl.colors.to_rgb(look.color) for look in styles(names).values()])
        for matrix in matrices:
            seen = colors @ np.array(matrix).T
            apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)
            assert apart[np.triu_indices(len(names), 1)].min() > 0.15


class TestLabels:
    @given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.floats(0.1, 30))
    def test_spread(self, wanted, gap):
        placed = labels.spread(np.array(wanted), gap, 0, 100)
        fits = min(gap, 100 / max(len(wanted) - 1, 1))
        assert placed.min() >= -1e-9
        assert placed.max() <= 100 + 1e-9
        assert (np.diff(np.sort(placed)) >= fits - 1e-9).all()
        order = np.argsort(wanted, kind="stable")
        assert (np.diff(placed[order]) > 0).all()

    def test_spread_leaves_alone_what_is_far_apart(self):
        assert labels.spread([10.0, 90.0, 50.0], 12, 0, 100).tolist() == [10, 90, 50]

    def test_place_keeps_labels_off_points_and_each_other(self):
        rng = np.random.default_rng(1)
        spots = rng.uniform(50, 950, (20, 2))
        sizes = np.full((20, 2), (90.0, 16.0))
        corners, _ = labels.place(spots, sizes, (0, 0, 1000, 1000), 6)
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        assert boxes.min() >= 0
        assert boxes.max() <= 1000
        for index, box in enumerate(boxes):
            others = np.delete(boxes, index, axis=0)
            assert labels._covered(box, others) == 0
            inside = (spots > box[:2]).all(axis=1) & (spots < box[2:]).all(axis=1)
            assert not inside.any()


def test_importing_lrc_does_not_import_matplotlib():
    code = "import sys, lrc; assert 'matplotlib' not in sys.modules; lrc.charts.lines"
    subprocess.run([sys.executable, "-c", code], check=True)
