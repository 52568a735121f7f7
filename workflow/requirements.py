"""Print the `pip:` list of environment.yml as a requirements file. Standard library only: it runs
before anything is installed.
"""

import sys
from pathlib import Path

inside = False
for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
    text = line.split("#")[0].rstrip()
    if inside and text.lstrip().startswith("- "):
        print(text.lstrip()[2:].strip())
    inside = inside or text.strip() == "- pip:"
