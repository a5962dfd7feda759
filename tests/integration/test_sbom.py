"""`make sbom`: the bill of materials is what the lock says."""

from __future__ import annotations

import json
import re
import subprocess

from tests.support.manifests import ROOT

_PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[^\]]*\])?==([^ ;\\]+)", re.MULTILINE)


def test_the_bill_of_materials_has_every_package_of_the_image_with_its_hashes() -> None:
    done = subprocess.run(["make", "sbom"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bill = json.loads((ROOT / "docsum.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    found = {(each["name"], each["version"]) for each in bill["components"]}
    assert found == set(_PIN.findall((ROOT / "requirements/runtime.txt").read_text()))
    assert len(found) > 50
    for each in bill["components"]:
        (distribution,) = each["externalReferences"]
        assert all(hashed["alg"] == "SHA-256" for hashed in distribution["hashes"]) and distribution["hashes"]
