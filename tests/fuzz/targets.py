"""All targets; their shares say how many of all cases each gets."""

from tests.fuzz.model_cards import CARDS
from tests.fuzz.overrides import OVERRIDES
from tests.fuzz.pages import PAGES
from tests.fuzz.readers import READERS
from tests.fuzz.run_folders import RUN_FOLDERS

TARGETS = {target.name: target for target in (READERS, OVERRIDES, RUN_FOLDERS, PAGES, CARDS)}
