# SPDX-License-Identifier: LGPL-2.1-or-later
"""main.py - the command line: files or drawn rounds, a record of the run, and the shrinking of one that fails."""
import argparse
import glob
import os
import signal
import sys
import time

from lablib.util import LabError, say

from .draw import Draw
from .record import Record
from .session import Session, tell
from .shrink import flatten, rounds_of, shrink
from .steps import Scenario, ScenarioError, parse_file, parse_line

SHRINK_S = 150
# Drawn runs differ in their labs, too: seeds below MORE_SEEDS in the first four.
LABS = ({}, {}, {"mode": "buffered", "interval": "0"}, {"port": "stream"}, {"arbiter": "manual"},
        {"disk": "48", "images": "a:64,b:64", "overlays": "a:64,b:64"})
FEW, MORE_SEEDS = 4, 1000


def arguments(source):
    parser = argparse.ArgumentParser(prog="chaos", description="Scenarios against a protected pair, an audit after every step.")
    parser.add_argument("scenarios", nargs="*", metavar="FILE", help="scenario, or folder of *.scenario")
    parser.add_argument("--random", action="store_true", help="draw steps instead")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100000)
    parser.add_argument("--minutes", type=float, default=5, help="with --random: no round begins after this")
    parser.add_argument("--rounds", type=int, default=0, help="with --random: end after so many")
    parser.add_argument("--check", action="store_true", help="only read the files")
    parser.add_argument("--no-shrink", action="store_true", help="leave a failing random run as long as it is")
    parser.add_argument("--keep", action="store_true", help="leave the lab as it is after a failure")
    parser.add_argument("--build", default=f"{source}/build/dev")
    parser.add_argument("--out", default=f"{source}/build/chaos", help="where the runs' folders are made")
    args = parser.parse_args()
    if bool(args.scenarios) == args.random:
        parser.error("either files or --random")
    return args


def find_files(paths):
    found = []
    for path in paths:
        found += sorted(glob.glob(f"{path}/*.scenario")) if os.path.isdir(path) else [path]
    if not found:
        raise ScenarioError(f"no *.scenario in {', '.join(paths)}")
    return found


def short(name):
    return os.path.basename(name).removesuffix(".scenario")


class Run:
    """One session after the other, all in one record."""

    def __init__(self, args, record, lab_id):
        self.args = args
        self.record = record
        self.lab_id = lab_id
        self.session = None
        self.number = 0

    def open(self, options):
        if self.session and (self.session.options != options or not self.session.fit):
            self.close()
        if not self.session:
            self.session = Session(self.lab_id, options, self.args.build, self.args.seed)
            self.session.open()
        return self.session

    def one(self, scenario):
        outcome = self.open(scenario.options).run(scenario, tell)
        self.record.add(short(scenario.name), outcome)
        if outcome.wrong:
            self.number += 1
            self.record.save_failure(self.session, f"{self.number}-{short(scenario.name)}")
        return outcome

    def close(self):
        if not self.session:
            return
        session, self.session = self.session, None
        try:
            wrong = session.close()
            for kind, text in wrong:
                say(f"at the end: WRONG ({kind}): {text}")
            self.record.add_wrong("end", wrong)
            if wrong:
                self.record.save_failure(session, f"{self.number}-end")
            if session.watch:
                self.record.take(session)
        finally:
            if not (self.args.keep and self.record.wrong):
                session.drop()


def run_files(args, run):
    scenarios = [parse_file(path) for path in find_files(args.scenarios)]
    if args.check:
        return
    # Those that want the same lab stand together, those that spoil it last.
    scenarios.sort(key=lambda one: (sorted(one.options.items()), one.spoils))
    for scenario in scenarios:
        say(f"scenario {short(scenario.name)}")
        try:
            run.one(scenario)
        except LabError as error:
            run.record.add_wrong(short(scenario.name), [("lab", str(error))])
            say(f"WRONG: {error}")
            if run.session:
                run.session.fit = False


def run_random(args, run):
    options = LABS[args.seed % (FEW if args.seed < MORE_SEEDS else len(LABS))]
    draw = Draw(args.seed, options)
    end = time.monotonic() + args.minutes * 60
    steps, number = [], 0
    outcome = None
    run.open(options)
    say(f"seed {args.seed}, lab {options or 'as usual'}")
    end += time.monotonic() - run.record.start  # the minutes are those of the rounds
    while time.monotonic() < end and (not args.rounds or number < args.rounds):
        number += 1
        drawn = draw.round()
        say(f"round {number}")
        outcome = run.one(Scenario(f"round-{number}", drawn, options, drawn=True))
        steps += [step for step, _ in zip(drawn, outcome.steps)]
        if outcome.wrong:
            break
    run.record.title += f", {number} rounds"
    run.close()
    if outcome and outcome.wrong:
        failed = Scenario(f"seed-{args.seed}", steps, options)
        save(run.record.path(f"seed-{args.seed}-long.scenario"), failed, outcome)
        if not args.no_shrink:
            shrink_run(args, run, failed, outcome)


def save(path, scenario, outcome):
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"# {outcome.wrong[0][0]}: " + outcome.wrong[0][1].replace("\n", " ")[:300] + "\n" + scenario.text())
    say(f"kept: {path}")


def shrink_run(args, run, failed, outcome):
    """Runs shorter and shorter candidates, each on a new pair; what they find is not part of the record."""
    ends = [parse_line(line) for line in Draw(args.seed, failed.options).end]
    deadline = time.monotonic() + SHRINK_S
    session = None

    def fails(steps):
        nonlocal session
        say(f"--- shrinking: {len(steps)} steps")
        if session and not session.fit:
            session.close()
            session.drop()
            session = None
        try:
            if not session:
                session = Session(run.lab_id, failed.options, args.build, args.seed)
                session.open()
            found = session.run(Scenario("candidate", [*steps], failed.options, drawn=True), tell)
        except LabError as error:
            say(f"the candidate could not be run: {error}")
            if session:
                session.fit = False
            return False
        return bool(found.kinds & outcome.kinds)
    best = shrink(failed.steps, ends, fails, lambda: time.monotonic() < deadline)
    if session:
        session.close()
        session.drop()
    save(run.record.path(f"seed-{args.seed}.scenario"), Scenario(failed.name, best, failed.options), outcome)
    say(f"shrunk from {len(failed.steps)} steps ({len(rounds_of(failed.steps))} rounds) to {len(flatten(rounds_of(best)))}")


def main(source):
    args = arguments(source)
    lab_id = os.environ.get("COLOD_LAB_ID", "chaos")
    command = "tests/chaos/chaos " + (f"--random --seed {args.seed} --minutes {args.minutes:g}" if args.random
                                      else " ".join(args.scenarios))
    try:
        if args.check:
            run_files(args, None)
            return 0
        if not args.random:  # bad lines are told before anything is made
            for path in find_files(args.scenarios):
                parse_file(path)
        title = f"random run, seed {args.seed}" if args.random else "scenarios " + ", ".join(map(short, args.scenarios))
        folder = f"{args.out}/{time.strftime('%Y%m%d-%H%M%S')}-{args.seed}"
        record = Record(folder, title, command)
    except ScenarioError as error:
        print(f"chaos: error: {error}", file=sys.stderr)
        return 2
    return carry_out(args, Run(args, record, lab_id))


def carry_out(args, run):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the lab is removed all the same
    try:
        (run_random if args.random else run_files)(args, run)
    except (LabError, KeyboardInterrupt) as error:
        run.record.add_wrong("run", [("lab", f"{type(error).__name__}: {error}")])
        if run.session:
            run.session.fit = False
    finally:
        run.close()
    print(run.record.finish())
    print(f"run's folder: {run.record.folder}")
    return 1 if run.record.wrong else 0
