# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab as a Python library: tests/lab/lab is its command line, tests/e2e and tests/bench use it directly.

Standard library only.
"""
