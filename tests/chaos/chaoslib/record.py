# SPDX-License-Identifier: LGPL-2.1-or-later
"""record.py - the folder of a run: what was done and when, what both hosts said, a picture, and what it came to."""
import json
import os
import time

from lablib.util import LabError

from .timeline import timeline

QUIET = ("pause", "assert", "mend")  # steps that are no marks in the picture
COUNTS = ("acknowledged", "lost", "duplicated", "wrong", "resets")
PICTURE_S = 180  # of a long run the end is drawn


class Record:
    def __init__(self, folder, title, command):
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.title = title
        self.command = command
        self.start = time.monotonic()
        self.started = time.strftime("%Y-%m-%d %H:%M:%S")
        self.steps = []  # (scenario, Done)
        self.wrong = []  # (scenario, kind, text)
        self.sessions = []  # numbers of each lab
        self.lanes = {"a": ([], []), "b": ([], [])}
        self.events = {"a": [], "b": []}
        self.stalls = {}
        self.oracles = {}

    def path(self, name):
        return f"{self.folder}/{name}"

    def add(self, scenario, outcome):
        self.steps += [(scenario, done) for done in outcome.steps]
        self.wrong += [(scenario, kind, text) for kind, text in outcome.wrong]

    def add_wrong(self, scenario, wrong):
        self.wrong += [(scenario, kind, text) for kind, text in wrong]

    def take(self, session):
        """All that a lab knows, before it is removed."""
        for name, host in session.watch.hosts.items():
            self.events[name] += host.events
            self.lanes[name][0].extend((sample.when, *self._of(sample)) for sample in host.samples)
            self.lanes[name][1].extend(host.checkpoints)
            with open(self.path(f"status-{name}.jsonl"), "a", encoding="utf-8") as file:
                file.writelines(json.dumps(sample.json()) + "\n" for sample in host.samples)
        self._take_oracles(session.performer.reports)
        self.sessions.append({**session.audit.counts, "failovers": session.watch.failovers(),
                              "options": session.options, "most": session.audit.resources.most,
                              "first": {f"{name} as {role}": usage for (name, role), usage in session.audit.resources.first.items()}, "rss": session.audit.resources.rss})

    @staticmethod
    def _of(sample):
        values = sample.values or {}
        return values.get("state"), values.get("generation"), values.get("reason")

    def _take_oracles(self, reports):
        for report in reports:
            for name, line in report.items():
                total = self.oracles.setdefault(name, {**dict.fromkeys(COUNTS, 0), "stalls": 0, "worst_stall_ms": 0})
                for what in COUNTS:
                    total[what] += line.get(what, 0)
                stalls = [(stall["at"], stall["ms"]) for stall in line.get("stalls", [])]
                total["stalls"] += len(stalls)
                total["worst_stall_ms"] = max([total["worst_stall_ms"], *(ms for _, ms in stalls)])
                self.stalls.setdefault(name, []).extend(stalls)

    def save_failure(self, session, name):
        target = self.path(f"failure-{name}")
        try:
            session.lab.save_logs(target)
            session.capture.save(target)
        except (LabError, OSError) as error:
            self.wrong.append((name, "logs", str(error)))

    # The end

    def totals(self):
        sums = {key: sum(one[key] for one in self.sessions)
                for key in ("failovers", "audits", "settled", "verified", "dual_active", "disk_differences")}
        # Datagrams may be lost and may come twice: those are told in the oracle's own line.
        sums.update({what: sum(line[what] for name, line in self.oracles.items()
                               if name != "udp" or what not in ("lost", "duplicated")) for what in COUNTS})
        rss = [kib for one in self.sessions for _, _, _, kib in one["rss"]]
        return {**sums, "steps": len(self.steps), "seconds": round(time.monotonic() - self.start), "rss_max_kib": max(rss, default=0)}

    def finish(self):
        """Writes everything; the report's text."""
        for name, events in self.events.items():
            with open(self.path(f"events-{name}.json"), "w", encoding="utf-8") as file:
                json.dump(events, file, indent=0)
        with open(self.path("scenario"), "w", encoding="utf-8") as file:
            for scenario, done in self.steps:
                file.write(f"# {done.start - self.start:9.3f} to {done.end - self.start:9.3f} s"
                           f"{' struck ' + done.resolved if done.resolved else ''}  ({scenario})\n{done.text}\n")
        with open(self.path("stalls.json"), "w", encoding="utf-8") as file:
            json.dump({name: [{"at": round(at - self.start, 3), "ms": ms} for at, ms in found] for name, found in self.stalls.items()}, file)
        with open(self.path("timeline.svg"), "w", encoding="utf-8") as file:
            file.write(self._picture())
        report = {"title": self.title, "command": self.command, "started": self.started, **self.totals(), "oracles": self.oracles,
                  "sessions": self.sessions, "failures": [{"scenario": where, "kind": kind, "text": text} for where, kind, text in self.wrong]}
        with open(self.path("report.json"), "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
        text = self._text()
        with open(self.path("report.txt"), "w", encoding="utf-8") as file:
            file.write(text)
        return text

    def _picture(self):
        end = max([done.end for _, done in self.steps] or [time.monotonic()]) + 0.5
        start = max(min([done.start for _, done in self.steps] or [self.start]) - 0.5, end - PICTURE_S)
        faults = [(done.start, done.text.partition(" within")[0], done.resolved) for _, done in self.steps
                  if done.start >= start and done.text.split()[0].strip("(") not in (*QUIET, "wait", "end:")]
        hosts = {name: (samples, [tick for tick in ticks if tick[0] >= start]) for name, (samples, ticks) in self.lanes.items()}
        stalls = {name: [stall for stall in found if stall[0] + stall[1] / 1000 >= start and stall[0] < end]
                  for name, found in self.stalls.items()}
        return timeline(f"{self.title}, {self.started}", start, end, hosts, faults, stalls)

    def _text(self):
        totals = self.totals()
        lines = [f"{self.title}: {'WRONG' if self.wrong else 'all as it must be'}", f"again with:  {self.command}",
                 f"started {self.started}, {totals['seconds']} s; picture: timeline.svg", "",
                 f"{totals['steps']} steps, {totals['audits']} audits, {totals['settled']} times protected again, "
                 f"{totals['failovers']} failovers, disks verified {totals['verified']} times",
                 f"dual-active moments {totals['dual_active']}, silent disk differences {totals['disk_differences']}, "
                 f"colod at most {totals['rss_max_kib'] // 1024} MiB", "",
                 f"{'oracle':<10}" + "".join(f"{what:>14}" for what in COUNTS) + f"{'stalls':>8}{'worst, ms':>11}"]
        for name, line in self.oracles.items():
            lines.append(f"{name:<10}" + "".join(f"{line[what]:>14}" for what in COUNTS) + f"{line['stalls']:>8}{line['worst_stall_ms']:>11}")
        lines += [""] + [f"WRONG in {where} ({kind}): {text}" for where, kind, text in self.wrong]
        return "\n".join(lines) + "\n"
