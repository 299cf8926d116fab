# SPDX-License-Identifier: LGPL-2.1-or-later
"""main.py - the command line."""
import argparse
import glob
import os
import sys
import time

from lablib.util import LabError, say

from .session import Session, tell
from .steps import ScenarioError, parse_file


def arguments(source):
    parser = argparse.ArgumentParser(prog="chaos", description="Scenarios against a protected pair, an audit after every step.")
    parser.add_argument("scenarios", nargs="*", metavar="FILE", help="scenario, or folder of *.scenario")
    parser.add_argument("--random", action="store_true", help="draw steps instead")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--minutes", type=float, default=5, help="with --random: no round begins after this")
    parser.add_argument("--check", action="store_true", help="only read the files")
    parser.add_argument("--no-shrink", action="store_true", help="leave a failing random run as long as it is")
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


def run_files(args, lab_id):
    scenarios = [parse_file(path) for path in find_files(args.scenarios)]
    if args.check:
        return 0
    wrong = 0
    # Those that want the same lab stand together, those that spoil it last.
    scenarios.sort(key=lambda one: (sorted(one.options.items()), one.spoils))
    session = None
    for scenario in scenarios:
        if session and (session.options != scenario.options or not session.fit):
            wrong += end(session)
            session = None
        if not session:
            session = Session(lab_id, scenario.options, args.build, args.seed)
            session.open()
        say(f"scenario {scenario.name}")
        wrong += bool(session.run(scenario, tell).wrong)
    wrong += end(session)
    return 1 if wrong else 0


def end(session):
    wrong = session.close()
    for kind, text in wrong:
        say(f"at the end: WRONG ({kind}): {text}")
    session.drop()
    return len(wrong)


def main(source):
    args = arguments(source)
    lab_id = os.environ.get("COLOD_LAB_ID", "chaos")
    try:
        return run_files(args, lab_id)
    except ScenarioError as error:
        print(f"chaos: error: {error}", file=sys.stderr)
        return 2
    except LabError as error:
        print(f"chaos: error: {error}", file=sys.stderr)
        return 1
