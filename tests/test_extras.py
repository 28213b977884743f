import tomllib

from shared.extras import install_hint, packages_of
from tests.parties import ROOT


def test_an_extras_packages_are_those_of_the_project_file_and_never_our_own_name():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert packages_of("onnx") == ["onnx", "onnxruntime", "onnxscript"]
    assert set(packages_of("dp")) == {"opacus", "opendp"}  # an extra within it
    for extra in extras:
        assert packages_of(extra)
        assert "planearly" not in packages_of(extra)
    assert install_hint("lora") == "pip install peft"
    assert install_hint("nonsense") == "install the packages of the extra nonsense"
