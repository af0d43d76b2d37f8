"""The out-of-core path against the in-memory one, the external sort, feature shards, and the formulas of `scale`."""

from __future__ import annotations

import doctest
import importlib
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_lib import paths
from saerl_lib.__main__ import main
from saerl_lib.config import PlanConfig, PropertyConfig
from saerl_lib.config.plan import REST, UNEQUAL
from saerl_lib.paper.assumptions import OURS, PAPER
from saerl_lib.paper.config import PaperConfig
from saerl_lib.plan import PlanError, build_plan, plan_hash, read_plan, write_plan
from saerl_lib.scale import command, formula
from saerl_lib.scale.assumptions import ScaleAssumptions, assumption_rows
from saerl_lib.scale.clock import Clock
from saerl_lib.scale.config import ScaleConfig
from saerl_lib.scale.external_sort import merged, write_runs
from saerl_lib.scale.passes import first_clusters, fit_scores, plan_by_passes, refine_clusters
from saerl_lib.scale.plan_file import id_checksum, plan_to_file
from saerl_lib.scale.records import Scored, float_key, float_of_key, pack, record_dtype, unpack
from saerl_lib.scale.shards import ShardedPool, open_pool, open_shard, write_shard
from saerl_lib.scale.simulate import NAMES, Simulation
from saerl_lib.scale.synthetic import read_labelled, write_pool

SMALL = ScaleConfig(shard_rows=900, block_rows=256, run_rows=97, merge_rows=60, fan_in=3, group_batches=5, row_group_rows=150)
"""Everything crosses a border: several merge passes, runs, groups and row groups."""
WIDTH = 8


def scored(n: int, seed: int = 0, clusters: int = 6) -> Scored:
    """Samples with many equal scores, negative ones, and clusters of unequal size, one of them empty."""
    rng = np.random.default_rng(seed)
    names = np.array([f"q{i:05d}".encode() for i in rng.permutation(n)])
    label = np.where(rng.random(n) < 0.4, 0, rng.integers(0, clusters, n))
    label[label == 3] = 4
    ranking = np.round(rng.normal(size=n), 1) + 0.01 * label
    # + 0.0: a score of -0.0 is sorted and stored as 0.0
    return Scored(names, label, ranking + 0.0, np.round(rng.normal(size=n), 1) + 0.0, rng.integers(10, 400, n).astype(float))


def pieces(rows: Scored, size: int) -> list[Scored]:
    """Chunks as the second pass hands them on."""
    return [Scored(*(v[i : i + size] for v in vars(rows).values())) for i in range(0, len(rows), size)]


def streamed(rows: Scored, folder: Path, plan: PlanConfig, config: ScaleConfig = SMALL) -> Path:
    work = folder / "work"
    work.mkdir(parents=True)
    written = plan_to_file(pieces(rows, 41), folder / "plan.parquet", work, plan, config, WIDTH, Clock())
    assert written.order_sha256 == plan_hash(read_plan(folder / "plan.parquet"))
    return folder / "plan.parquet"


def in_memory(rows: Scored, plan: PlanConfig):
    names = [name.decode() for name in rows.ids.tolist()]
    return build_plan(names, rows.clusters, rows.ranking, rows.raw, rows.length, plan)


# The same plan.


@pytest.mark.parametrize("rest", REST)
@pytest.mark.parametrize("unequal", UNEQUAL)
@pytest.mark.parametrize("swapped", [0, 3])
def test_plan_equals_the_in_memory_plan(tmp_path: Path, rest: str, unequal: str, swapped: int) -> None:
    plan = PlanConfig(8, swapped, window_batches=3, rest=rest, unequal=unequal)
    rows = scored(1600, seed=len(rest) + len(unequal))
    expected, found = in_memory(rows, plan), read_plan(streamed(rows, tmp_path, plan))
    assert found.table.equals(expected.table)
    assert (found.order, found.prompts_per_step, found.swapped_per_batch) == ("saerl", 8, swapped)
    assert (expected.unpaired_share < 1) == bool(swapped)


def test_plan_in_one_row_group_equals_write_plan_byte_for_byte(tmp_path: Path) -> None:
    rows, plan = scored(1600), PlanConfig(16, 2)
    write_plan(in_memory(rows, plan), tmp_path / "expected.parquet")
    assert streamed(rows, tmp_path / "a", plan, ScaleConfig()).read_bytes() == (tmp_path / "expected.parquet").read_bytes()


def test_sizes_of_blocks_runs_and_groups_do_not_matter(tmp_path: Path) -> None:
    rows, plan = scored(1600), PlanConfig(16, 2)
    tables = [read_plan(streamed(rows, tmp_path / str(i), plan, config)).table for i, config in enumerate((SMALL, ScaleConfig()))]
    assert tables[0].equals(tables[1])


def test_order_of_the_input_does_not_matter(tmp_path: Path) -> None:
    rows, plan = scored(800), PlanConfig(8, 1)
    turned = Scored(*(values[::-1] for values in vars(rows).values()))
    assert streamed(rows, tmp_path / "a", plan).read_bytes() == streamed(turned, tmp_path / "b", plan).read_bytes()


@pytest.mark.parametrize("n_clusters", [1, 300])
def test_one_cluster_and_clusters_without_a_full_batch(tmp_path: Path, n_clusters: int) -> None:
    rows, plan = scored(800, clusters=n_clusters), PlanConfig(8, 1)
    assert read_plan(streamed(rows, tmp_path, plan)).table.equals(in_memory(rows, plan).table)


@pytest.fixture(scope="module")
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, 2560, SMALL)
    return folder


def test_whole_path_equals_the_in_memory_functions(pool_folder: Path, tmp_path: Path) -> None:
    pool, labelled = open_pool(pool_folder / "pool"), read_labelled(pool_folder)
    plan, properties = PlanConfig(32, 2), PropertyConfig(cluster_fit_rows=400, clusters=5)
    clock, work = Clock(), tmp_path / "work"
    work.mkdir()
    written = plan_by_passes(pool, labelled, tmp_path / "plan.parquet", work, plan, properties, SMALL, 0, clock)
    blocks = list(pool.blocks(256))
    phi, ids = np.concatenate([b.phi for b in blocks]), [name.decode() for b in blocks for name in b.ids.tolist()]
    clusters = refine_clusters(pool, first_clusters(pool, properties, 0), 0, SMALL)
    label = clusters.assign(phi).label
    scores = fit_scores(labelled, clusters, properties, 0).predict(phi, label)
    expected = build_plan(ids, label, scores.ranking, scores.raw, np.concatenate([b.length for b in blocks]), plan).table
    found = read_plan(tmp_path / "plan.parquet").table
    exact = ["position", "step", "slot", "sample_id", "cluster", "swapped_with"]
    assert found[exact].equals(expected[exact])
    # blocks of another size may give another last digit of a matrix product
    np.testing.assert_allclose(found["ranking_score"], expected["ranking_score"], rtol=1e-12)
    assert (written.samples, written.steps) == (2560, 80) and len(set(found["cluster"])) == clusters.k
    assert set(clock.wall) == set(NAMES) and min(clock.wall.values()) > 0


def test_the_pass_of_mini_batches_moves_centroids_nearer_to_the_samples(pool_folder: Path) -> None:
    pool, properties = open_pool(pool_folder / "pool"), PropertyConfig(cluster_fit_rows=200, clusters=5)
    start = first_clusters(pool, properties, 0)
    first, again = (refine_clusters(pool, start, 0, SMALL) for _ in range(2))
    phi = np.concatenate([block.phi for block in pool.blocks()])
    spread = [float(np.square(c.assign(phi).distance).mean()) for c in (start, first)]
    assert np.array_equal(first.centroids, again.centroids) and spread[1] < spread[0]


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    config = ScaleConfig(block_rows=200, run_rows=400, merge_rows=400, fan_in=50, group_batches=20, row_group_rows=400)

    def drawn(n: int):
        return (scored_block(start, 200) for start in range(0, n, 200))

    def scored_block(start: int, size: int) -> Scored:
        rng = np.random.default_rng(start)
        names = np.array([f"{i:08d}".encode() for i in range(start, start + size)])
        return Scored(names, rng.integers(0, 4, size), rng.normal(size=size), rng.normal(size=size), np.full(size, 9.0))

    peaks = []
    for n in (400, 2000, 8000):  # the first loads what is loaded lazily
        work = tmp_path / str(n)
        work.mkdir()
        tracemalloc.start()
        plan_to_file(drawn(n), tmp_path / f"{n}.parquet", work, PlanConfig(8, 1), config, WIDTH, Clock())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]


# What is refused.


def broken(what: str) -> tuple[Scored, str]:
    rows = scored(800)
    if what == "repeated":
        rows.ids[700], rows.clusters[700] = rows.ids[3], (rows.clusters[3] + 1) % 3
        return rows, f"1 repeated ids, first \\['{rows.ids[3].decode()}'\\]"
    if what == "short":
        return Scored(*(values[:-1] for values in vars(rows).values())), "799 samples are no multiple of prompts_per_step=8"
    field = {"score": "ranking", "raw": "raw", "length": "length"}[what]
    getattr(rows, field)[5] = 0.0 if what == "length" else np.nan
    return rows, field


@pytest.mark.parametrize("what", ["repeated", "short", "score", "raw", "length"])
def test_bad_samples_are_named_and_leave_no_plan(tmp_path: Path, what: str) -> None:
    rows, message = broken(what)
    with pytest.raises(PlanError, match=message):
        streamed(rows, tmp_path, PlanConfig(8, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_a_lost_record_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saerl_lib.scale import plan_file

    monkeypatch.setattr(plan_file, "id_checksum", lambda ids, width: len(ids) if len(ids) == 41 else 0)
    with pytest.raises(PlanError, match="others than the pool"):
        streamed(scored(800), tmp_path, PlanConfig(8, 1))
    assert not list(tmp_path.glob("plan.parquet*"))


def test_a_stream_inside_a_call_is_timed_apart() -> None:
    clock = Clock()

    def slow():
        for i in range(3):
            time.sleep(0.03)
            yield i

    def drain(items) -> int:
        time.sleep(0.05)
        return sum(items)

    assert clock.call("sum", lambda: drain(clock.stream("outer", clock.stream("slow", slow())))) == 3
    assert clock.wall["slow"] >= 0.09 and 0.05 <= clock.wall["sum"] and clock.wall["outer"] < 0.03
    assert clock.processor["slow"] < clock.wall["slow"]


def test_checksum_depends_on_every_id_but_not_on_the_order() -> None:
    ids = np.array([b"a", b"ab", b"abcdefgh", b"abcdefghi"])
    assert id_checksum(ids, 9) == id_checksum(ids[::-1], 9)
    changed = {id_checksum(np.array([*ids[:i], b"z", *ids[i + 1 :]]), 9) for i in range(4)}
    assert len(changed | {id_checksum(ids, 9)}) == 5


def test_merging_of_small_clusters_is_refused(pool_folder: Path) -> None:
    with pytest.raises(ValueError, match="smallest_cluster=5 needs a further pass"):
        first_clusters(open_pool(pool_folder / "pool"), PropertyConfig(smallest_cluster=5), 0)


# Records and the external sort.


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2))
def test_float_keys_order_as_floats_do(values: list[float]) -> None:
    given_values = np.array(values)
    keys = np.frombuffer(float_key(given_values).tobytes(), dtype="S8")
    assert np.array_equal(float_of_key(float_key(given_values)), given_values)
    assert given_values[np.argsort(keys, kind="stable")].tolist() == sorted(values)


@given(st.lists(st.tuples(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=6),
                          st.integers(0, 300), st.sampled_from([-1.5, 0.0, 2.0]), st.sampled_from([-1.0, 1.0])),
                min_size=1, unique_by=lambda row: row[0]))  # fmt: skip
def test_record_keys_order_as_the_curriculum_does(rows: list[tuple[str, int, float, float]]) -> None:
    names, clusters, ranking, raw = (list(column) for column in zip(*rows, strict=True))
    ids = np.array([name.encode() for name in names])
    given_rows = Scored(ids, np.array(clusters), np.array(ranking), np.array(raw), np.ones(len(rows)))
    records = pack(given_rows, 24)
    back = unpack(records)
    assert [name.decode() for name in back.ids.tolist()] == names and back.clusters.tolist() == clusters
    assert back.ranking.tolist() == ranking and back.raw.tolist() == raw
    expected = np.lexsort((np.array(names), raw, ranking, clusters))
    assert np.argsort(records["key"]).tolist() == expected.tolist()


@pytest.mark.parametrize("fan_in", [2, 100])
def test_external_sort_orders_all_records_and_removes_its_runs(tmp_path: Path, fan_in: int) -> None:
    dtype = np.dtype([("key", "S6"), ("length", "<f8")])
    rng = np.random.default_rng(0)
    everything = np.empty(3000, dtype)
    everything["key"], everything["length"] = rng.integers(0, 900, 3000).astype("S6"), np.arange(3000)
    config = ScaleConfig(run_rows=130, merge_rows=70, fan_in=fan_in)
    runs = write_runs(np.array_split(everything, 7), tmp_path / "runs", config.run_rows)
    assert len(runs) == 24
    blocks = list(merged(runs, dtype, config))
    found = np.concatenate(blocks)
    assert found["key"].tolist() == sorted(everything["key"].tolist()) and len(blocks) > 10
    assert sorted(found["length"].tolist()) == list(range(3000))
    assert not list((tmp_path / "runs").iterdir())


# Feature shards.


def test_shards_give_back_what_was_written(tmp_path: Path) -> None:
    rng, pools = np.random.default_rng(0), []
    z, metadata = rng.random((70, 8)).astype(np.float16), (1e5 + rng.random((70, 3))).astype(np.float32)
    ids, length = [f"ä{i}" for i in range(70)], np.arange(1.0, 71.0)
    for number, part in enumerate((slice(0, 40), slice(40, 70))):
        write_shard(tmp_path / f"shard-{number:05d}.safetensors", ids[part], z[part], metadata[part], length[part])
    pool = open_pool(tmp_path)
    pools = list(pool.blocks(32))
    assert [len(block.ids) for block in pools] == [32, 8, 30]
    assert [name.decode() for block in pools for name in block.ids.tolist()] == ids
    phi = np.concatenate([z.astype(np.float32), metadata], axis=1)
    assert np.array_equal(np.concatenate([block.phi for block in pools]), phi)
    assert np.array_equal(np.concatenate([block.length for block in pools]), length)
    rows = np.array([0, 39, 40, 69])
    assert np.array_equal(pool.take(rows), phi[rows]) and pool.rows == 70


def test_a_pool_does_not_depend_on_its_size(tmp_path: Path) -> None:
    heads = []
    for samples in (1000, 1900):
        write_pool(tmp_path / str(samples), samples, SMALL)
        heads.append(next(open_pool(tmp_path / str(samples) / "pool").blocks()))
    assert np.array_equal(heads[0].phi, heads[1].phi) and heads[0].ids[0] == b"pool-0000000000"


def bad_shard(what: str, path: Path) -> ShardedPool | None:
    z, metadata = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    names = ["a", "b", "c", ""] if what == "empty id" else ["a", "b", "c", "d"]
    if what == "overflow":
        with np.errstate(over="ignore"):
            z = (1e6 * z).astype(np.float16)
    if what == "dtype":
        z = z.astype(np.float64)
    metadata[2, 1] = np.nan if what == "nan" else 1.0
    write_shard(path, names, z, metadata, np.ones(4))
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    if what == "other":
        path.write_bytes(b"\2\0\0\0\0\0\0\0{}")
    return ShardedPool((open_shard(path),))


@pytest.mark.parametrize(
    ("what", "message"),
    [("overflow", "z holds non-finite values or overflowed float16"), ("dtype", "z is float64"), ("empty id", "an id is empty"),
     ("cut", "z does not hold 4 rows: the file is cut short"), ("other", "no feature shard"),
     ("nan", "1 rows hold non-finite features, first row 2")],
)  # fmt: skip
def test_bad_shards_are_named(tmp_path: Path, what: str, message: str) -> None:
    path = tmp_path / "shard-00000.safetensors"
    with pytest.raises(ValueError, match=f"{path}: {message}|{path} is {message}"):
        pool = bad_shard(what, path)
        list(pool.blocks())


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shard"):
        open_pool(tmp_path)


# Formulas, document, command.

CONFIG, GIVEN = PaperConfig(), ScaleAssumptions()


def test_bytes_of_the_formula_are_those_on_disk(pool_folder: Path) -> None:
    pool = open_pool(pool_folder / "pool")
    headers = sum(int.from_bytes(shard.path.read_bytes()[:8], "little") + 8 for shard in pool.shards)
    assert pool.disk_bytes - headers == pool.rows * formula.phi_bytes(CONFIG, GIVEN)
    assert record_dtype(pool.id_bytes).itemsize == record_dtype(GIVEN.id_bytes).itemsize


def test_distinct_latents_against_drawing_them() -> None:
    rng = np.random.default_rng(0)
    drawn = [len(np.unique(np.concatenate([rng.choice(500, 20, replace=False) for _ in range(40)]))) for _ in range(30)]
    assert formula.distinct_latents(40, 500, 20) == pytest.approx(np.mean(drawn), rel=0.02)


def test_steps_grow_with_the_samples_and_name_their_bound() -> None:
    small, large = ({s.key: s for s in formula.all_steps(n, CONFIG, GIVEN, ScaleConfig())} for n in (10**7, 10**8))
    assert large["encode"].gpu_hours[0] == pytest.approx(10 * small["encode"].gpu_hours[0])
    assert large["encode"].bound == "GPU FLOPs" and large["assign_score"].bound == "memory bandwidth"
    tiny = {s.key: s for s in formula.plan_steps(10**5, CONFIG, GIVEN, ScaleConfig())}
    assert large["external_sort"].seconds > 1000 * tiny["external_sort"].seconds  # longer runs are more than linear
    slow = {s.key: s for s in formula.plan_steps(10**8, CONFIG, ScaleAssumptions(disk_bytes_per_second=1e7), ScaleConfig())}
    assert slow["assign_score"].bound == "disk bandwidth"
    two = {s.key: s for s in formula.plan_steps(10**8, CONFIG, ScaleAssumptions(processes=2), ScaleConfig())}
    assert two["assign_score"].seconds == pytest.approx(large["assign_score"].seconds / 2)


def test_too_few_samples_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--samples", "100"]) == 1
    assert "fill no batch of 128" in capsys.readouterr().err


def test_every_assumption_has_its_origin() -> None:
    rows = assumption_rows(CONFIG, GIVEN)
    assert {row[2] for row in rows} == {OURS, PAPER} and all(row[3] for row in rows)
    assert {"usd_per_h100_hour", "fit_bytes_per_number", "h100_peak_flops"} <= {row[0] for row in rows}


def test_the_functions_said_to_grow_exist() -> None:
    for growth in formula.in_memory_growth(CONFIG, GIVEN):
        module, _, name = growth.function.rpartition(".")
        owner = module.removesuffix(".Store").replace(".", "/")
        source = (paths.ROOT / "saerl_lib" / f"{owner}.py").read_text(encoding="utf-8")
        assert f"def {name}(" in source or f"class {name}:" in source
        assert growth.full_at(1e9) == int(1e9 // growth.bytes_per_sample)


def test_document_agrees_with_the_formulas() -> None:
    text = (paths.ROOT / "docs" / "hundred_million.md").read_text(encoding="utf-8")
    for marker, part in command.formula_parts(command.SAMPLES).items():
        assert f"<!-- begin {marker} -->\n{part}\n<!-- end {marker} -->" in text, "run python -m saerl_lib scale --write-docs"
    measured = text.split("<!-- begin scale-measured -->")[1].split("<!-- end scale-measured -->")[0]
    assert "Extrapolated to 100,000,000" in measured and "Peak memory" in measured


def test_extrapolation_leaves_fixed_steps_alone() -> None:
    found = Simulation(1000, 10, 0.1, {}, {"cluster_start": 2.0, "cluster_fit": 3.0}, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert found.extrapolated(5000) == {"cluster_start": 2.0, "cluster_fit": 15.0}
    assert found.rows_per_second["cluster_fit"] == pytest.approx(1000 / 3)


def test_command_prints_tables_and_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--samples", "1000000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = json.loads(lines[-1])
    assert record["samples"] == 1_000_000 and record["store_features_bytes"] == 1_000_000 * formula.phi_bytes(CONFIG, GIVEN)
    assert any(line.lstrip().startswith("assign and score") for line in lines) and "simulated_samples" not in record


def test_document_is_written_for_its_own_size_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--samples", "1000000", "--write-docs"]) == 1
    assert "leave out --samples" in capsys.readouterr().err


@pytest.mark.slow
def test_simulation_measures_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--simulate", "20000"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["simulated_samples"] == 19_968 and record["sorted_bytes"] == 19_968 * record_dtype(GIVEN.id_bytes).itemsize
    assert all(record[f"{name}_s"] > 0 for name in ("cluster_fit", "assign_score", "external_sort", "swap", "export"))


@pytest.mark.parametrize("name", ["config", "records", "plan_file", "formula", "tables"])
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"saerl_lib.scale.{name}"))
    assert found.attempted and not found.failed
