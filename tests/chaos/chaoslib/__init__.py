# SPDX-License-Identifier: LGPL-2.1-or-later
"""chaoslib - scenarios against a protected pair, drawn or written by hand, with an audit after every step."""
