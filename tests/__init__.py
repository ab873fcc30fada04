"""Tests compute in portable arithmetic, as the default does; it is chosen before any of them imports torch."""

from classifier.arithmetic import use

use("portable")
