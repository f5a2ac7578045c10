"""Figures: finite data, units on axes, bands, and one colour per arm."""

import dataclasses
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from made_up import run, study, trial

from hpo_mab._errors import UnknownNameError
from hpo_mab.advantage import Estimate
from hpo_mab.compare import figures, summarise
from hpo_mab.compare._tables import too_wide
from hpo_mab.compare.figures._search import shuffled_concentration

_STUDIES = Path(__file__).parents[2] / "studies"
OKABE_ITO = {
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
}  # fmt: skip


@pytest.fixture(name="drawn", scope="module")
def _drawn(runs, summary):
    return {
        "anytime": figures.anytime_incumbent(runs),
        "anytime, seconds": figures.anytime_incumbent(runs, currency="seconds"),
        "advantage": figures.paired_advantage(summary),
        "advantage, seconds": figures.paired_advantage(summary, currency="seconds"),
        "acceleration": figures.acceleration(summary),
        "acceleration, seconds": figures.acceleration(summary, currency="seconds"),
        "fidelity": figures.fidelity(summary),
        "cost": figures.cost_to_target(summary),
        "cost, seconds": figures.cost_to_target(summary, currency="seconds"),
        "accuracy": figures.learning_curves(runs),
        "training loss": figures.learning_curves(runs, metric="train_loss"),
        "rewards": figures.reward_rate(runs),
        "concentration": figures.concentration(runs),
        "knobs": figures.knob_slices(runs),
    }


def lines(figure, name):
    """Traces that show an arm, without its bands."""
    arms = (t for t in figure.data if t.legendgroup == name and t.fill is None)
    return [t for t in arms if t.name == name]


def with_contrast(summary, **changes):
    """The summary with a changed contrast; ``row`` is an evaluation and its changes."""
    (contrast,) = summary.contrasts
    if row := changes.pop("row", None):
        rows = list(contrast.paired)
        rows[row[0]] = dataclasses.replace(rows[row[0]], **row[1])
        changes["paired"] = tuple(rows)
    return dataclasses.replace(summary, contrasts=(dataclasses.replace(contrast, **changes),))


def colour(trace):
    return trace.line.color or trace.marker.color


@pytest.mark.parametrize("rows", [0, 1])
def test_the_reference_is_drawn_with_the_arm_of_most_pairs(summary, rows):
    (most,) = summary.contrasts
    few = dataclasses.replace(most, pairs=rows, paired=most.paired[:rows])
    mixed = dataclasses.replace(summary, contrasts=(few, most))
    (trace,) = lines(figures.fidelity(mixed), summary.reference)
    assert len(trace.x) == len(most.paired)


def test_fidelity_is_to_the_arms_own_final_ranking(drawn):
    for arm in ("mab", "uniform"):
        (trace,) = lines(drawn["fidelity"], arm)
        assert trace.y[-1] == 1.0


def test_every_figure_has_finite_data(drawn):
    for name, figure in drawn.items():
        assert figure.data, name
        for trace in figure.data:
            assert len(trace.x) == len(trace.y) > 0, name
            numbers = [v for v in (*trace.x, *trace.y) if not isinstance(v, str)]
            assert np.isfinite(numbers).all(), name


def test_titles_and_units(drawn):
    units = (
        "examples",
        "seconds",
        "%",
        "points",
        "ratio",
        "-1 to 1",
        "target",
        "as searched",
        "nats",
    )
    for name, figure in drawn.items():
        assert figure.layout.title.text, name
        for axis in (figure.layout.xaxis, figure.layout.yaxis):
            assert any(unit in axis.title.text for unit in units), (name, axis.title.text)


def test_an_arm_has_one_colour_everywhere(drawn):
    for arm in ("mab", "uniform"):
        shown = [t for figure in drawn.values() for t in figure.data if t.name == arm]
        used = {colour(t) for t in shown}
        assert len(used) == 1, arm
        assert used <= OKABE_ITO
    assert figures.colours(["mab"])["mab"] != figures.colours(["uniform"])["uniform"]


def test_colours_do_not_depend_on_order_and_differ_while_they_last():
    names = ["uniform", "mab", "mab_hyperband", "uniform_median", "topk"]
    chosen = figures.colours(names)
    assert figures.colours(reversed(names)) == chosen
    assert len(set(chosen.values())) == len(names)
    assert set(chosen.values()) <= OKABE_ITO


def test_no_two_arms_of_a_definition_have_one_colour():
    raws = [tomllib.loads(path.read_text()) for path in _STUDIES.glob("*/*.toml")]
    compared = [[*raw["compare"]["arms"]] for raw in raws if "arms" in raw.get("compare", {})]
    assert len(compared) > 4
    for arms in [*compared, ["uniform", "mab", "unpruned"]]:
        assert len(set(figures.colours(arms).values())) == len(arms), arms
    # Where some of them are compared, each keeps its colour.
    for name in ("unpruned", "mab_hyperband", "uniform_hyperband", "psgd"):
        assert len({figures.colours([name, *arms])[name] for arms in compared}) == 1


def test_twelve_arms_have_colours_of_their_own_and_more_differ_in_dash():
    arms = [f"arm{i}" for i in range(16)]
    assert len(set(figures.colours(arms[:12]).values())) == 12
    runs = [study(arm, 0, trials=2, pruned=0) for arm in arms]
    figure = figures.anytime_incumbent(runs)
    styles = {(t.line.color, t.line.dash) for arm in arms for t in lines(figure, arm)}
    assert len(styles) == 16


def test_incumbent_is_the_median_within_the_seeds_range(drawn, runs):
    (trace,) = lines(drawn["anytime"], "mab")
    finals = [100 * run.best.value for run in runs if run.arm == "mab"]
    assert trace.y[-1] == pytest.approx(np.median(finals))
    assert trace.x[-1] == runs[1].examples
    low, high = (t for t in drawn["anytime"].data if t.name.startswith("mab: range of 5 seeds"))
    assert (low.y[-1], high.y[-1]) == pytest.approx((min(finals), max(finals)))


def test_an_incumbent_of_one_point_has_a_marker():
    (trace,) = lines(figures.anytime_incumbent([study("mab", 0, trials=1, pruned=0)]), "mab")
    assert (len(set(trace.x)), trace.mode) == (1, "markers")


def test_a_reference_of_one_evaluation_has_a_marker():
    runs = [
        run([trial([0.5 + 0.1 * number], number=number) for number in range(3)], arm=arm)
        for arm in ("mab", "uniform")
    ]
    for draw in (figures.paired_advantage, figures.acceleration):
        (trace,) = (t for t in draw(summarise(runs)).data if t.name == "uniform")
        assert trace.mode == "markers"


def test_an_arm_that_has_no_incumbent_for_a_seed_is_named():
    runs = [study("uniform", 0), study("mab", 0), run([], arm="mab", seed=1)]
    figure = figures.anytime_incumbent(runs)
    assert not lines(figure, "mab")
    assert "without mab: a seed has no complete trial" in figure.layout.title.text


def test_text_at_the_pointer_has_no_interval_where_there_is_none(runs):
    summary = summarise(runs[:2])
    (trace, _) = figures.cost_to_target(summary).data
    assert not any("[" in text for text in trace.text)
    assert all("[" in text for text in lines(figures.paired_advantage(summary), "mab")[0].text)


def test_more_than_two_intervals_are_bars():
    arms = ("mab", "uniform", "uniform_hyperband", "mab_hyperband")
    runs = [study(arm, seed, rewards=0.5) for arm in arms for seed in range(3)]
    summary = summarise(runs)
    for figure, curves in (
        (figures.paired_advantage(summary), 3),
        (figures.fidelity(summary), 4),
        (figures.anytime_incumbent(runs), 4),
        (figures.learning_curves(runs), 4),
        (figures.concentration(runs), 4),
    ):
        assert not [t for t in figure.data if t.fill]
        bars = [t for t in figure.data if t.error_y.array is not None]
        assert len(bars) == curves
        # They do not hide each other.
        assert len({t.x[-1] for t in bars}) == curves
        assert "bar: " in figure.layout.title.text
    bar = next(t for t in figures.paired_advantage(summary).data if t.error_y.array is not None)
    row = summary.contrasts[0].paired[-1].advantage
    assert bar.y[-1] + bar.error_y.array[-1] == pytest.approx(100 * row.high)


def test_bars_of_many_arms_are_at_their_own_evaluation():
    arms = [f"arm{number}" for number in range(40)]
    runs = [study(arm, seed, trials=1, pruned=0) for arm in arms for seed in range(2)]
    bars = [t for t in figures.learning_curves(runs).data if t.error_y.array is not None]
    assert len(bars) == len(arms)
    places = 1_000 * np.arange(1, 9)
    assert all(np.abs(np.asarray(bar.x) - places).max() < 500 for bar in bars)


def test_titles_fit_a_phone(drawn):
    for name, figure in drawn.items():
        title, _, below = figure.layout.title.text.partition("<br><sup>")
        assert max(map(len, title.split("<br>"))) <= 42, name
        assert max(map(len, below.removesuffix("</sup>").split("<br>"))) <= 56, name
        assert len(figure.layout.yaxis.title.text) <= 36, name
        assert len(figure.layout.xaxis.title.text) <= 48, name
        assert figure.layout.legend.orientation == "h"


def test_concentration_is_held_against_shuffled_passes():
    rng = np.random.default_rng(0)
    size, passes = 1_000, np.array([0.05, 0.1, 0.5, 1.0, 1.05, 1.5, 2.0, 3.7])
    for shown, share in zip(shuffled_concentration(passes), passes, strict=True):
        order = [rng.permutation(size) for _ in range(4)]
        counts = np.bincount(np.concatenate(order)[: round(share * size)], minlength=size)
        assert shown == pytest.approx(np.sort(counts)[-size // 10 :].sum() / counts.sum())
    one = dataclasses.replace(
        run([trial([0.1] * 8, rewards=0.5)], arm="mab"), training_examples=4_000
    )
    line = next(t for t in figures.concentration([one]).data if t.name == "uniform, shuffled")
    assert (line.x[0], line.y[0]) == (1_000, pytest.approx(40.0))
    assert (line.x[-1], line.y[-1]) == (8_000, pytest.approx(10.0))
    # Records of earlier versions do not have the size; without it, nothing is drawn.
    unknown = dataclasses.replace(one, training_examples=None)
    assert len(figures.concentration([unknown]).data) == len(figures.concentration([one]).data) - 1


def test_an_interval_without_an_upper_end_ends_in_an_arrow(summary):
    (contrast,) = summary.contrasts
    row = contrast.paired[1]
    estimate = dataclasses.replace(row.acceleration, high=math.inf, censored=False)
    figure = figures.acceleration(with_contrast(summary, row=(1, {"acceleration": estimate})))
    (arrow,) = [t for t in figure.data if t.name.endswith("no upper bound")]
    assert (arrow.x, arrow.marker.symbol) == ((row.examples,), "arrow-up")
    assert "arrow: no upper bound" in figure.layout.title.text


def test_an_interval_too_wide_to_inform_has_no_bar(summary):
    (contrast,) = summary.contrasts
    wide = Estimate(value=0.3, low=0.005, high=17.0, n=2)
    cost = dataclasses.replace(contrast.cost[0], ratio=wide)
    figure = figures.cost_to_target(with_contrast(summary, cost=(cost,)))
    assert figure.data[0].error_x.array == (0.0,)
    assert figure.data[0].error_x.arrayminus == (0.0,)
    assert "no bar: " in figure.layout.title.text
    assert too_wide(wide)
    assert not too_wide(Estimate(value=0.3, low=0.1, high=1.0, n=2))
    assert not too_wide(Estimate(value=2.0, low=1.5, high=math.inf, n=2))


def test_an_interval_too_wide_to_inform_does_not_set_the_scale(summary):
    (contrast,) = summary.contrasts
    wide = dataclasses.replace(contrast.paired[2].advantage, low=-0.4, high=0.45)
    figure = figures.paired_advantage(with_contrast(summary, row=(2, {"advantage": wide})))
    low, high = figure.layout.yaxis.range
    assert -20 < low < 0 < high < 20
    (line,) = lines(figure, "mab")
    assert low < min(line.y) < max(line.y) < high
    assert "cut: intervals wider than 20 points" in figure.layout.title.text.replace("<br>", " ")
    assert figures.paired_advantage(summary).layout.yaxis.range is None


def test_a_cost_that_is_not_known_makes_no_figure(summary):
    (contrast,) = summary.contrasts
    unknown = Estimate(value=math.nan, low=math.nan, high=math.nan, n=0)
    cost = dataclasses.replace(contrast.cost[0], ratio=unknown)
    assert not figures.cost_to_target(with_contrast(summary, cost=(cost,))).data


def test_every_arm_is_in_the_legend_of_the_knobs():
    runs = [
        run([trial([0.5], params={"sampler.floor": 0.1})], arm="mab"),
        run([trial([0.5], params={"sampler.presample": 3})], arm="gradnorm"),
    ]
    shown = [t.name for t in figures.knob_slices(runs).data if t.showlegend]
    assert sorted(shown) == ["gradnorm", "mab"]


def test_six_seeds_have_an_interval_of_the_median():
    runs = [study("mab", seed) for seed in range(9)]
    finals = sorted(100 * run.best.value for run in runs)
    low, high = (t for t in figures.anytime_incumbent(runs).data if "interval" in t.name)
    # Of nine, the second smallest and second largest hold the median with 96%.
    assert (low.y[-1], high.y[-1]) == pytest.approx((finals[1], finals[-2]))


def test_bands_are_the_intervals(drawn, summary):
    low, high = (t for t in drawn["advantage"].data if "interval" in t.name)
    rows = summary.contrasts[0].paired
    assert low.y == pytest.approx([100 * row.advantage.low for row in rows])
    assert high.y == pytest.approx([100 * row.advantage.high for row in rows])
    assert high.fill == "tonexty"


def test_censored_points_are_triangles_and_their_band_ends_at_what_can_be_seen(drawn, summary):
    rows = summary.contrasts[0].paired
    (trace,) = lines(drawn["acceleration"], "mab")
    assert [symbol == "triangle-up" for symbol in trace.marker.symbol] == [
        row.acceleration.censored for row in rows
    ]
    high = next(t for t in drawn["acceleration"].data if t.fill == "tonexty")
    assert high.y[-1] == pytest.approx(1.0)


def test_an_interval_without_ends_draws_no_band(runs):
    figure = figures.paired_advantage(summarise(runs[:2]))
    assert figure.data
    one = [row.advantage.bounded for row in summarise(runs[:2]).contrasts[0].paired]
    assert all(one)
    lonely = dataclasses.replace(runs[0], trials=runs[0].trials[:1])
    single = figures.paired_advantage(summarise([lonely, runs[1]]))
    assert not [t for t in single.data if t.fill == "tonexty"]
    assert lines(single, "mab")


def test_no_band_is_drawn_where_nothing_was_measured(summary):
    row = summary.contrasts[0].paired[1]
    nothing = Estimate(value=math.nan, low=0.0, high=math.inf, n=0)
    figure = figures.acceleration(with_contrast(summary, row=(1, {"acceleration": nothing})))
    (line,) = lines(figure, "mab")
    bands = [t for t in figure.data if "interval" in t.name]
    assert len(bands) == 2
    for trace in (line, *bands):
        assert len(trace.x) == len(summary.contrasts[0].paired) - 1
        assert row.examples not in trace.x


def test_cost_error_bars_stop_where_nothing_is_known():
    runs = [
        run([trial([0.1, own], examples=100)], arm=arm, seed=seed)
        for seed, pair in enumerate([(0.5, 0.6), (0.9, 0.6), (0.7, 0.6)])
        for arm, own in zip(("mab", "uniform"), pair, strict=True)
    ]
    summary = summarise(runs)
    trace, unit = figures.cost_to_target(summary).data
    assert set(unit.x) == {1}
    assert summary.contrasts[0].cost[0].ratio.high == math.inf
    assert trace.error_x.array[0] == 0.0
    assert trace.marker.symbol[0] == "triangle-right"
    assert "reached in 2 of 3 seeds" in trace.text[0]


def test_arms_are_next_to_each_other_at_each_target():
    runs = [study(arm, seed) for arm in ("mab", "psgd", "uniform") for seed in range(3)]
    figure = figures.cost_to_target(summarise(runs))
    one, other, unit = figure.data
    assert len({*one.y, *other.y}) == len(one.y) + len(other.y)
    # Plotly's own grouping would change the ratios.
    assert figure.layout.scattermode is None
    assert (unit.x, unit.y[0] < min(one.y), unit.y[1] > max(other.y)) == ((1, 1), True, True)


def test_learning_curves_are_means_over_seeds_with_their_interval():
    finals = {0: [0.5, 0.7], 1: [0.8], 2: [0.9]}
    runs = [
        run([trial([0.1, end], number=i) for i, end in enumerate(ends)], arm="mab", seed=seed)
        for seed, ends in finals.items()
    ]
    # Trials that the arms do not share, and those that failed, do not count.
    extra = [
        trial([0.1, 0.0], number=7, paired=False),
        trial([0.1, 0.0], number=8, state="fail"),
    ]
    runs[1] = dataclasses.replace(runs[1], trials=(*runs[1].trials, *extra))
    figure = figures.learning_curves(runs)
    (trace,) = lines(figure, "mab")
    assert trace.x == (4_000.0, 8_000.0)
    # Seeds are what varies: two trials of one seed are one value, 0.6.
    values = 100 * np.array([0.6, 0.8, 0.9])
    assert trace.y == pytest.approx((10.0, values.mean()))
    low, high = (t for t in figure.data if "95% interval" in t.name)
    half = 4.302653 * values.std(ddof=1) / math.sqrt(3)  # Student's t, 2 degrees of freedom.
    assert (low.y[-1], high.y[-1]) == pytest.approx((values.mean() - half, values.mean() + half))
    (loss,) = lines(figures.learning_curves(runs, metric="train_loss"), "mab")
    assert loss.x == (4_000.0, 8_000.0)
    assert loss.y[-1] == pytest.approx(1.1 - values.mean() / 100)
    assert loss.line.color == trace.line.color
    with pytest.raises(UnknownNameError):
        figures.learning_curves(runs, metric="acuracy")


def test_learning_curves_say_which_weights_they_are_of():
    made = [trial([0.1, 0.5, 0.7], number=i) for i in range(2)]
    averaged = [with_averages(one, 2) for one in made]
    for trials, words in (
        (made, "accuracy of trained weights"),
        (averaged, "accuracy of averaged weights up to evaluation 2, trained weights after it"),
        ([with_averages(one, 3) for one in made], "accuracy of averaged weights"),
        (
            [made[0], averaged[1]],
            "accuracy of averaged weights at 2 of 6 evaluations, trained weights at the others",
        ),
    ):
        runs = [run(trials, arm="mab")]
        title = figures.learning_curves(runs).layout.title.text.replace("<br>", " ")
        assert title.removesuffix("</sup>").endswith(words)
        loss = figures.learning_curves(runs, metric="train_loss").layout.title.text
        assert "weights" not in loss


def test_learning_curves_say_where_trials_that_were_stopped_are_missing():
    made = [trial([0.1, 0.5], number=0), trial([0.1], number=1, state="pruned", examples=4_000)]
    words = "stopped trials count up to their last evaluation"

    def titles(trials):
        drawn = (
            figures.learning_curves([run(trials, arm="mab")], metric=metric)
            for metric in ("accuracy", "train_loss")
        )
        return [figure.layout.title.text.replace("<br>", " ") for figure in drawn]

    assert all(words in title for title in titles(made))
    # It is not drawn if it is not one of those that the arms share.
    made[1] = dataclasses.replace(made[1], paired=False)
    assert not any(words in title for title in titles(made))


def with_averages(trial, count):
    """The trial with averaged weights at its first evaluations."""
    curve = [dataclasses.replace(point, averaged=point.index <= count) for point in trial.curve]
    return dataclasses.replace(trial, curve=tuple(curve))


def test_curves_are_downsampled():
    long = trial(np.linspace(0.1, 0.9, 1_000), examples=100_000, rewards=0.5)
    runs = [run([long], arm="mab")]
    for figure in (
        figures.reward_rate(runs, max_points=50),
        figures.concentration(runs, max_points=50),
        figures.anytime_incumbent(runs, max_points=50),
        figures.learning_curves(runs, max_points=50),
    ):
        assert max(len(t.x) for t in figure.data) == 50
    many = run([trial([0.5], number=i, params={"sampler.memory": i}) for i in range(99)], arm="mab")
    assert len(figures.knob_slices([many], max_points=20).data[0].x) == 20
    assert figures.reward_rate(runs, max_points=50).data[-1].x[-1] == 100_000


def test_reward_rate_leaves_out_samplers_without_rewards(drawn):
    assert not lines(drawn["rewards"], "uniform")
    assert lines(drawn["rewards"], "mab")[0].y[0] == pytest.approx(50.0)


def test_a_panel_for_each_knob():
    trials = [
        trial([0.5], number=i, params={"sampler.memory": i, "sampler.policy": "softmax", "lr": 0.1})
        for i in range(3)
    ]
    figure = figures.knob_slices([run(trials, arm="mab")])
    shown = {figure.layout.xaxis.title.text, figure.layout.xaxis2.title.text}
    assert shown == {"sampler.memory (as searched)", "sampler.policy (as searched)"}
    everything = figures.knob_slices([run(trials, arm="mab")], prefix="")
    assert len(everything.data) == 3
    # A value beyond one budget does not compare with the others.
    longer = dataclasses.replace(trials[2], number=3, attrs={"hpo_mab:length": 2})
    figure = figures.knob_slices([run([*trials, longer], arm="mab")])
    assert len(figure.data[0].x) == 3


def test_nothing_to_show_says_so():
    empty = [run([], arm="uniform"), run([], arm="mab")]
    summary = summarise(empty)
    for figure in (
        figures.anytime_incumbent(empty),
        figures.paired_advantage(summary),
        figures.acceleration(summary),
        figures.fidelity(summary),
        figures.cost_to_target(summary),
        figures.learning_curves(empty),
        figures.reward_rate(empty),
        figures.concentration(empty),
        figures.knob_slices(empty),
    ):
        assert not figure.data
        assert figure.layout.annotations[0].text.endswith(".")


def test_unknown_names_are_refused(summary):
    with pytest.raises(UnknownNameError, match="'second'"):
        figures.cost_to_target(summary, currency="second")
    for draw in (figures.paired_advantage, figures.acceleration):
        with pytest.raises(UnknownNameError, match="'example'"):
            draw(summary, currency="example")
    with pytest.raises(UnknownNameError, match="'kendall'"):
        summary.contrasts[0].paired[0].agreement("recall", final="own")


def test_curves_of_an_arm_are_those_of_its_own_sampler():
    own = trial([0.5, 0.6], number=0)
    twin = dataclasses.replace(
        trial([0.1, 0.2], number=1, slot=0),
        attrs={"hpo_mab:twin_of": 0, "hpo_mab:sampler": "uniform"},
    )
    made = figures.learning_curves([run([own, twin], arm="mab")])
    (line,) = [trace for trace in made.data if trace.mode == "lines+markers"]
    assert list(line.y) == pytest.approx([50.0, 60.0])


def test_a_knob_of_texts_and_numbers_has_an_axis_of_texts():
    values = [None, 50, 100, 50]
    trials = [
        trial([0.5], number=number, params={"sampler.memory": value})
        for number, value in enumerate(values)
    ]
    figure = figures.knob_slices([run(trials, arm="mab")])
    assert list(figure.data[0].x) == ["None", "50", "100", "50"]
    assert figure.layout.xaxis.type == "category"
    figure = figures.knob_slices([run(trials[1:], arm="mab")])
    assert list(figure.data[0].x) == [50, 100, 50]


@pytest.mark.parametrize(("lowest", "scale"), [(1, "log"), (0, None)])
def test_a_knob_searched_on_a_logarithmic_scale_has_such_an_axis(lowest, scale):
    trials = [
        trial([0.5], number=number, params={"sampler.memory": value})
        for number, value in enumerate([lowest, 10, 100])
    ]
    memory = {"low": 1, "high": 100, "log": True}
    spec = {"sampler": {"kind": "mab", "memory": memory}}
    figure = figures.knob_slices([dataclasses.replace(run(trials, arm="mab"), spec=spec)])
    assert figure.layout.xaxis.type == scale


def test_attempts_that_are_tried_again_are_not_drawn_twice():
    cut = trial([0.5, 0.6], number=0, state="fail", rewards=0.9)
    again = dataclasses.replace(trial([0.5, 0.6], number=1, rewards=0.5), slot=0)
    found = figures.reward_rate([run([cut, again], arm="mab")])
    assert lines(found, "mab")[0].y[0] == pytest.approx(50.0)
