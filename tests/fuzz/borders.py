"""The borders that are fuzzed: what a user, another program or an earlier run may give us, and what reads it."""

from tests.fuzz.configurations import CONFIGURATIONS
from tests.fuzz.models import MODELS
from tests.fuzz.place import Border
from tests.fuzz.records import RECORDS
from tests.fuzz.rows import DATA

BORDERS: dict[str, Border] = CONFIGURATIONS | DATA | MODELS | RECORDS
