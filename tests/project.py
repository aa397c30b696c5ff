"""The project folder on the path of imports, for the programs of this folder: `import project` comes first."""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
