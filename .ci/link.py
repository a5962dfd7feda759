"""Put this source tree on the path of the running interpreter and write the `docsum` launcher beside it."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

root = Path(__file__).resolve().parent.parent
packages = Path(sysconfig.get_paths()["purelib"])
(packages / "docsum.pth").write_text(f"{root / 'app'}\n")
launcher = Path(sysconfig.get_paths()["scripts"]) / "docsum"
launcher.write_text(f"#!{sys.executable}\nimport sys\n\nfrom docsum.cli import main\n\nsys.exit(main())\n")
launcher.chmod(0o755)
