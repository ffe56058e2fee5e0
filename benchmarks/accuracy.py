"""Accuracy of the shipped jobs by cross-validation, and what attention gates bring: goes on where it was.

    python benchmarks/accuracy.py SUITE… [--steps-per-minute N]
    python benchmarks/accuracy.py --tables

Suites are `hippocampus` (the shipped job), `curve` (the same for shorter and longer), `gates-hippocampus`
(without gates), `gates-openkbp` (with and without) and `plan`: what `clinseg plan` writes for a data set that
nobody tuned for. Every training is one `clinseg train` in a process of its own; its per-case table goes to
`docs/benchmarks/accuracy/ARM/NAME.csv`, and it is not made again while `trainings.csv` there has it. One that
was interrupted is resumed. Two pages are made of the tables: `accuracy.md` and `attention-gates.md`.

Budgets are minutes of an idle machine with two cores. Where other programs run beside, `--steps-per-minute`
gives every training the steps that an idle machine makes in these minutes instead.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import load_job
from pipeline.inference.confusion import read_confusions, summarise_confusions
from pipeline.statistics import interval_text, summarise
from pipeline.tracking import find_run, list_runs, read_metrics

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "docs" / "benchmarks"
RESULTS = TABLES / "accuracy"
LEDGER = RESULTS / "trainings.csv"
REMARKS = RESULTS / "remarks.md"
"""What a person has to say of the trainings, between tables and sources."""
GATES_REMARKS = RESULTS / "remarks-gates.md"
"""The same of attention gates."""
COLUMNS = ("arm", "training", "steps", "minutes_told", "minutes_taken", "run")
CONFUSION = "confusion"
"""Folder of the tables that say which structure was taken for which."""
ON, OFF = "network.attention_gates=true", "network.attention_gates=false"


@dataclass(frozen=True)
class Arm:
    """Trainings that are judged together.

    Attributes:
        config: Of `configs/`; or, with `plans`, written by `clinseg plan` for the data set of that name.
        minutes: Budget of each on an idle machine with two cores.
        folds: To validate on; `none` trains on every case and judges nothing.
        seeds: Of each.
        settings: Overrides.
        plans: Whether the config is a plan, and left as it is but for its budget in steps.
    """

    config: str
    minutes: float
    folds: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()
    plans: bool = False


FIVE = ("0", "1", "2", "3", "4")
SUITES: Mapping[str, Mapping[str, Arm]] = {
    "hippocampus": {"hippocampus-10": Arm("hippocampus.yaml", 10, (*FIVE, "none"))},
    "curve": {
        f"hippocampus-{minutes}": Arm("hippocampus.yaml", minutes, ("0",)) for minutes in (1, 5, 15, 30)
    },
    "gates-hippocampus": {
        "gates-hippocampus-off": Arm("hippocampus.yaml", 10, FIVE, settings=(OFF,)),
    },
    "gates-openkbp": {
        "gates-openkbp-on": Arm("openkbp.yaml", 30, ("0",), (0, 1), (ON,)),
        "gates-openkbp-off": Arm("openkbp.yaml", 30, ("0",), (0, 1), (OFF,)),
    },
    "plan": {"plan-openkbp-60": Arm("openkbp.yaml", 60, ("0",), plans=True)},
}
BESIDE: Mapping[str, Arm] = {
    arm: Arm("hippocampus.yaml", minutes, ("0",))
    for arm, minutes in (("hippocampus-10-wall", 10), ("nnunet-10", 10), ("nnunet-30", 30))
}
"""Minutes of the wall of one idle machine: the shipped job's and nnU-Net's (`accuracy_nnunet.py`)."""
GATES: Mapping[str, tuple[str, str]] = {
    "hippocampus": ("hippocampus-10", "gates-hippocampus-off"),
    "openkbp": ("gates-openkbp-on", "gates-openkbp-off"),
}
"""The arms with and without gates, by job."""
Rows = list[dict[str, str]]


def trainings(section: Arm) -> Iterator[tuple[str, str, int]]:
    """Name, fold and seed of each training of an arm."""
    for seed in section.seeds:
        for fold in section.folds:
            name = f"fold-{fold}" if len(section.seeds) == 1 else f"fold-{fold}-seed-{seed}"
            yield name, fold, seed


def run(arm: str, section: Arm, name: str, fold: str, seed: int, steps_per_minute: int | None) -> None:
    """Trains, or goes on with the training, and keeps its table."""
    config = plan(section) if section.plans else ROOT / "configs" / section.config
    experiment = f"{arm}-{name}"
    budget = [f"training.minutes={section.minutes}", "training.epochs=null"]
    if steps_per_minute is not None:
        per_epoch = load_job(config).training.steps_per_epoch
        epochs = max(1, round(section.minutes * steps_per_minute / per_epoch))
        budget = ["training.minutes=null", f"training.epochs={epochs}"]
    settings = [
        *section.settings,
        *budget,
        f"training.seed={seed}",
        f"tracking.experiment={experiment}",
        "tracking.overlays=0",
    ]
    begun = [found for found in list_runs(limit=1000) if found.experiment == experiment]
    if begun and begun[0].status != "FINISHED":
        arguments = ["--resume", begun[0].name]
    else:
        arguments = [str(config), "--fold", fold, *(part for one in settings for part in ("--set", one))]
    print(f"{arm} {name}: clinseg train {' '.join(arguments)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "pipeline", "train", *arguments], check=True)
    done = next(found for found in list_runs(limit=1000) if found.experiment == experiment)
    folder = Path("mlruns/runs") / done.name
    target = RESULTS / arm / f"{name}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    if (folder / "cases.csv").is_file():
        shutil.copyfile(folder / "cases.csv", target)
        (target.parent / CONFUSION).mkdir(exist_ok=True)
        shutil.copyfile(folder / "confusion.csv", target.parent / CONFUSION / target.name)
    is_new = not LEDGER.is_file()
    with LEDGER.open("a", encoding="utf-8", newline="") as file:
        ledger = csv.writer(file, lineterminator="\n")
        if is_new:
            ledger.writerow(COLUMNS)
        steps = count_steps(done.name, load_job(folder / "config.yaml").training.batch_size)
        ledger.writerow([arm, name, steps, section.minutes, round(done.minutes, 1), done.name])


def count_steps(run: str, batch_size: int) -> int:
    """How many a run has made, by the pace of its epochs."""
    metrics = read_metrics(find_run(run))
    seconds, pace = (metrics[f"training/{name}"] for name in ("epoch_seconds", "patches_per_second"))
    return round(sum(s * p for (_, s), (_, p) in zip(seconds, pace, strict=True)) / batch_size)


def plan(section: Arm) -> Path:
    """The config that `clinseg plan` writes."""
    path = Path("mlruns/planned") / section.config
    if not path.is_file():
        data = ROOT / "../shared/data" / path.stem / "dataset.json"
        minutes = ["--minutes", str(section.minutes)]
        subprocess.run(
            [sys.executable, "-m", "pipeline", "plan", str(data), "-o", str(path), *minutes], check=True
        )
    return path


def is_done(arm: str, name: str) -> bool:
    """Whether a training stands in the ledger."""
    return any(row["arm"] == arm and row["training"] == name for row in read(LEDGER))


def read(path: Path) -> Rows:
    """The rows of a CSV; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def load(arm: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Every row of an arm by training, case and structure."""
    tables = sorted((RESULTS / arm).glob("*.csv"))
    return {(t.stem, row["case"], row["label"]): row for t in tables for row in read(t)}


def write_accuracy() -> None:
    """`accuracy.md`: what every arm has reached so far."""
    lines = [
        "# Accuracy by cross-validation",
        "",
        "Every training by `python benchmarks/accuracy.py`; out-of-fold cases on the patients' own grids, no",
        "test-time flips; mean (bootstrap 95 % interval over cases). Per-case tables lie in `accuracy/`, the",
        "trainings with their steps and minutes in `accuracy/trainings.csv`.",
        "",
        "| arm | trainings done | cases | structure | Dice | HD95 mm | surface Dice |",
        "|---|---|---|---|---|---|---|",
        *(
            line
            for suite in (*SUITES.values(), BESIDE)
            for arm, section in suite.items()
            for line in arm_lines(arm, section)
        ),
        "",
        *side_lines(),
        REMARKS.read_text(encoding="utf-8"),
        "Published for the hippocampus (five folds, 208 training cases each, hours on a GPU, test-time",
        "mirroring): nnU-Net 3d_fullres 0.8975 (anterior), 0.8807 (posterior); MONAI DynUNet 0.8983, 0.8816.",
        "",
    ]
    (TABLES / "accuracy.md").write_text("\n".join(lines), encoding="utf-8")


def arm_lines(arm: str, section: Arm) -> Iterator[str]:
    """A line per structure, and one for their mean Dice."""
    names = [name for name, fold, _ in trainings(section) if fold != "none"]
    done = f"{sum(is_done(arm, name) for name in names)} of {len(names)}"
    by_structure: dict[str, dict[str, Rows]] = defaultdict(lambda: defaultdict(list))
    for (_, case, structure), row in load(arm).items():
        by_structure[structure][case].append(row)
    for structure, cases in by_structure.items():
        dice, hd95, nsd = (told(case_means(cases, name)) for name in ("dice", "hd95_mm", "nsd"))
        yield f"| {arm} | {done} | {len(cases)} | {structure} | {dice} | {hd95} | {nsd} |"
    if by_structure:
        means = [statistics.fmean(case_means(cases, "dice")) for cases in by_structure.values()]
        yield f"| {arm} | {done} | | mean | {statistics.fmean(means):.4f} | | |"
    else:
        yield f"| {arm} | {done} | | | not measured | | |"


def case_means(cases: Mapping[str, Rows], name: str) -> list[float]:
    """A figure of each case, the mean of its trainings: seeds are no further cases."""
    return [statistics.fmean(float(row[name]) for row in rows) for rows in cases.values()]


def side_lines() -> Iterator[str]:
    """How much of one side was marked as the other, in every training that has a table of it."""
    for folder in sorted(RESULTS.glob(f"*/{CONFUSION}")):
        found = [one for table in sorted(folder.glob("*.csv")) for one in read_confusions(table)]
        names = {row["label"] for table in folder.parent.glob("*.csv") for row in read(table)}
        for one in summarise_confusions(found, sorted(names)):
            if one.is_other_side:
                share = f"{one.volume_ml:.3f} ml in {one.num_cases} cases, {one.largest_share:.2%} at most"
                yield f"{folder.parent.name}: {one.reference} marked as {one.prediction}: {share}."
                yield ""


def write_gates() -> None:
    """`attention-gates.md`: the gates on against off, paired by case."""
    lines = [
        "# Attention gates, on against off",
        "",
        "`python benchmarks/accuracy.py hippocampus gates-hippocampus gates-openkbp`: all else equal, the",
        "same budget. Dice and its difference, on minus off, paired by case: mean (bootstrap 95 % interval",
        "over cases). Where there are several seeds, a case counts once, with the mean of its trainings.",
        "What gates cost in parameters and time stands in [training.md](training.md#attention-gates).",
        "",
        "| job | trainings of each | cases | structure | on | off | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for job, arms in GATES.items():
        on, off = map(load, arms)
        shared = sorted(on.keys() & off.keys())
        pairs: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        for key in shared:
            _, case, structure = key
            pairs[structure][case].append((float(on[key]["dice"]), float(off[key]["dice"])))
        count = len({training for training, _, _ in shared})
        for structure, cases in pairs.items():
            means = [tuple(map(statistics.fmean, zip(*values, strict=True))) for values in cases.values()]
            columns = [a for a, _ in means], [b for _, b in means], [a - b for a, b in means]
            lines.append(
                f"| {job} | {count} | {len(cases)} | {structure} | {' | '.join(map(told, columns))} |"
            )
        if not pairs:
            lines.append(f"| {job} | 0 | | | not measured | not measured | |")
    lines += ["", GATES_REMARKS.read_text(encoding="utf-8")]
    (TABLES / "attention-gates.md").write_text("\n".join(lines), encoding="utf-8")


def told(values: Sequence[float]) -> str:
    """Mean and interval."""
    summary = summarise(values)
    return f"{summary.mean:.4f} ({interval_text(summary, '.4f')})"


def main() -> None:
    """Trains what is not there yet and writes the pages after each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], help="what to train")
    parser.add_argument("--tables", action="store_true", help="only write the pages")
    parser.add_argument("--steps-per-minute", type=int, help="that an idle machine makes")
    arguments = parser.parse_args()
    for suite in arguments.suites if not arguments.tables else ():
        for arm, section in SUITES[suite].items():
            for name, fold, seed in trainings(section):
                if not is_done(arm, name):
                    run(arm, section, name, fold, seed, arguments.steps_per_minute)
                    write_accuracy()
                    write_gates()
    write_accuracy()
    write_gates()


if __name__ == "__main__":
    main()
